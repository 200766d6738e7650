package workload

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// A Request asks a serving process for one round of a row; one JSON object on
// one line. The row stays ready until another is asked for, so that rounds
// of several processes can be interleaved; an empty row drops it.
type Request struct {
	Row    string        `json:"row"`
	Budget time.Duration `json:"budget_ns"`
}

// A Reply answers one Request, likewise on one line.
type Reply struct {
	Row    string `json:"row"`
	Figure Figure `json:"figure"`
	// NoFigure says that the row does not apply to the subject.
	NoFigure bool   `json:"no_figure,omitempty"`
	Err      string `json:"err,omitempty"`
}

// Serve answers the requests of in until it ends. A row that fails is
// answered with its error and does not end it.
func Serve(in io.Reader, out io.Writer, sub Subject) (err error) {
	s := server{sub: sub}
	defer func() { err = errors.Join(err, s.drop()) }()
	dec, enc := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	for {
		var req Request
		switch err := dec.Decode(&req); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("workload: request: %w", err)
		}
		if err := enc.Encode(s.answer(req)); err != nil {
			return err
		}
	}
}

type server struct {
	sub Subject
	row string // "" while none is ready
	run *Run
}

func (s *server) answer(req Request) Reply {
	reply := Reply{Row: req.Row}
	fig, err := s.measure(req)
	reply.Figure = fig
	if errors.Is(err, ErrNoFigure) {
		reply.NoFigure = true
	} else if err != nil {
		reply.Err = err.Error()
	}
	return reply
}

func (s *server) measure(req Request) (Figure, error) {
	if req.Row == "" {
		return Figure{}, s.drop()
	}
	if s.row != req.Row {
		if err := s.drop(); err != nil {
			return Figure{}, err
		}
		row, err := Find(req.Row)
		if err != nil {
			return Figure{}, err
		}
		run, err := row.Prepare(s.sub)
		if err != nil {
			return Figure{}, err
		}
		s.row, s.run = req.Row, run
	}
	return s.run.Measure(req.Budget)
}

func (s *server) drop() error {
	run := s.run
	s.row, s.run = "", nil
	if run == nil {
		return nil
	}
	return run.Close()
}
