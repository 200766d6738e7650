package guest

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestBothSidesAgree compares the constants with the header that the guest is
// compiled with.
func TestBothSidesAgree(t *testing.T) {
	defines := make(map[string]uint64)
	for _, m := range regexp.MustCompile(`(?m)^#define (\w+) +(?:\(1ul << (\d+)\)|(\w+?)(?:ul)?)(?:\s|$)`).FindAllStringSubmatch(Source, -1) {
		if m[2] != "" {
			shift, _ := strconv.Atoi(m[2])
			defines[m[1]] = 1 << shift
			continue
		}
		v, err := strconv.ParseUint(m[3], 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		defines[m[1]] = v
	}
	for name, want := range map[string]uint64{
		"CONFIG": uint64(ConfigBase), "CONTROL": uint64(ControlBase), "LOCKS": uint64(LocksBase), "LEDGER": uint64(LedgerBase),
		"ENTRIES": LedgerEntries, "MAX_AREAS": MaxAreas, "MAX_SEEDS": MaxSeeds, "DOORBELL": Doorbell,
	} {
		if got, ok := defines[name]; !ok || got != want {
			t.Errorf("%s is %#x in C, %#x in Go", name, got, want)
		}
	}
	for _, s := range []struct {
		name string
		want map[string]int
	}{
		{"config", map[string]int{"stop": ConfigStop, "lineage": ConfigLineage, "seeds": ConfigSeeds, "nAreas": ConfigNAreas, "areas": ConfigAreas}},
		{"control", map[string]int{
			"cmd": ControlCommand, "args": ControlArgs, "consumed": ControlConsumed, "head": ControlHead, "tail": ControlTail,
			"random": ControlRandom, "result": ControlResult, "checked": ControlChecked, "errors": ControlErrors, "bad": ControlBad,
		}},
		{"area", map[string]int{"base": 0, "pages": 8, "kind": 16, "table": 24, "locks": 32, "id": 40}},
	} {
		offsets, size := fields(t, s.name, defines)
		for field, want := range s.want {
			if got, ok := offsets[field]; !ok || got != want {
				t.Errorf("%s.%s is at %d in C, %d in Go", s.name, field, got, want)
			}
		}
		if s.name == "area" && (size != AreaSize || size != len(Area{}.Encode())) {
			t.Errorf("an area has %d bytes in C, %d in Go", size, AreaSize)
		}
	}
	for name, want := range map[string]Command{"NOP": Nop, "RUN": Run, "FILL": Fill, "VERIFY": Verify, "ZERO": Zero, "TOUCH": Touch, "ROM": ROM} {
		if list := enumerators(t, "CMD_NOP"); list["CMD_"+name] != int(want) {
			t.Errorf("CMD_%s is %d in C, %d in Go", name, list["CMD_"+name], want)
		}
	}
}

// fields returns the offsets of the 8-byte fields of a structure.
func fields(t *testing.T, name string, defines map[string]uint64) (offsets map[string]int, size int) {
	t.Helper()
	_, body, ok := strings.Cut(Source, "struct "+name+" {")
	if !ok {
		t.Fatalf("no struct %s", name)
	}
	body, _, _ = strings.Cut(body, "};")
	offsets = make(map[string]int)
	for _, m := range regexp.MustCompile(`(u64|struct area) ([^;]*);`).FindAllStringSubmatch(body, -1) {
		for _, f := range strings.Split(m[2], ",") {
			field, rest, isArray := strings.Cut(strings.TrimSpace(f), "[")
			offsets[field] = size
			n := 1
			if isArray {
				count := strings.TrimSuffix(rest, "]")
				v, err := strconv.Atoi(count)
				if err != nil {
					v = int(defines[count])
				}
				n = v
			}
			if m[1] != "u64" {
				n *= AreaSize / 8
			}
			size += 8 * n
		}
	}
	return offsets, size
}

func enumerators(t *testing.T, first string) map[string]int {
	t.Helper()
	_, list, ok := strings.Cut(Source, "enum { "+first)
	if !ok {
		t.Fatalf("no enum that begins with %s", first)
	}
	list, _, _ = strings.Cut(list, "}")
	out := map[string]int{}
	for i, name := range strings.Split(first+list, ",") {
		out[strings.TrimSpace(name)] = i
	}
	return out
}
