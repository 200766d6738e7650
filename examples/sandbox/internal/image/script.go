package image

import (
	"bytes"
	"io"
)

// maxScriptLine is how much of a script's first line Linux looks at.
const maxScriptLine = 256

// Script returns the interpreter that a file's "#!" line names and its
// argument ("" for none), and false if the file is not a script. Everything
// behind the interpreter is one argument, as under Linux.
func Script(r io.ReaderAt) (interpreter, argument string, ok bool) {
	buf := make([]byte, maxScriptLine)
	n, err := r.ReadAt(buf, 0)
	if err != nil && err != io.EOF {
		return "", "", false
	}
	line, isScript := bytes.CutPrefix(buf[:n], []byte("#!"))
	if !isScript {
		return "", "", false
	}
	if end := bytes.IndexByte(line, '\n'); end >= 0 {
		line = line[:end]
	} else if n == maxScriptLine && !bytes.ContainsAny(bytes.TrimLeft(line, " \t"), " \t") {
		return "", "", false // the name itself is cut off: running half a name would be worse
	}
	line = bytes.Trim(line, " \t\x00")
	name, rest, _ := bytes.Cut(line, []byte(" "))
	if tab := bytes.IndexByte(name, '\t'); tab >= 0 {
		name, rest = line[:tab], line[tab+1:]
	}
	return string(name), string(bytes.Trim(rest, " \t")), len(name) > 0
}
