package testutil

import (
	"fmt"
	"strings"
	"testing"
)

// verdict records what require decided about a test.
type verdict struct {
	testing.TB // nil: only the methods below are called
	kind       string
	text       string
}

func (v *verdict) Helper()                   {}
func (v *verdict) Fatal(args ...any)         { v.kind, v.text = "fail", fmt.Sprint(args...) }
func (v *verdict) Fatalf(f string, a ...any) { v.kind, v.text = "fail", fmt.Sprintf(f, a...) }
func (v *verdict) Skipf(f string, a ...any)  { v.kind, v.text = "skip", fmt.Sprintf(f, a...) }

func TestRequire(t *testing.T) {
	absent := &lack{reason: "no device", cure: "add one"}
	broken := &lack{reason: "device is mute", cure: "mend it", plain: true}
	for _, tc := range []struct {
		name     string
		required string
		lack     *lack
		kind     string
		text     string
	}{
		{"met", "", nil, "", ""},
		{"met and required", "kvm", nil, "", ""},
		{"absent", "", absent, "skip", "no device; to cure it: add one"},
		{"absent, another required", "uffd,busybox", absent, "skip", "no device"},
		{"absent and required", "uffd, kvm", absent, "fail", "required by GUESTMM_REQUIRE"},
		{"broken", "", broken, "fail", "should be available"},
		{"misspelt", "kmv", nil, "fail", `names "kmv"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv(requireEnv, tc.required)
			v := &verdict{}
			require(v, needKVM, tc.lack)
			if v.kind != tc.kind || !strings.Contains(v.text, tc.text) {
				t.Errorf("got %q (%s), want %q (%s)", v.kind, v.text, tc.kind, tc.text)
			}
		})
	}
}

// The needs themselves: on a host that lacks them these are skipped, so that
// `go test -v` shows at once why.
func TestKVM(t *testing.T)  { RequireKVM(t) }
func TestUFFD(t *testing.T) { RequireUFFD(t, UFFDMissing) }
