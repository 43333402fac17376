package sidecar

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Code and constants may go; what the program or the loader has written to must stay, whatever its protection is now.
func TestCleanMappings(t *testing.T) {
	const smaps = `00400000-005cb000 r-xp 00000000 08:01 42 /usr/bin/floatip-sidecar
Rss:                1800 kB
Anonymous:             0 kB
005cb000-007ca000 r--p 001cb000 08:01 42 /usr/bin/floatip-sidecar
Anonymous:             0 kB
007ca000-007cb000 r--p 003ca000 08:01 42 /usr/bin/floatip-sidecar
Anonymous:             4 kB
007cb000-007e1000 rw-p 003cb000 08:01 42 /usr/bin/floatip-sidecar
Anonymous:             0 kB
c000000000-c000400000 rw-p 00000000 00:00 0
Anonymous:           512 kB
`
	want := []mapping{{0x400000, 0x5cb000}, {0x5cb000, 0x7ca000}}
	if diff := cmp.Diff(want, cleanMappings(smaps), cmp.AllowUnexported(mapping{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if cleanMappings("no mapping\nAnonymous:\n") != nil {
		t.Error("nonsense has mappings")
	}
}

// The program runs on after its pages went.
func TestSettle(t *testing.T) {
	for range 3 {
		settle()
	}
	if _, err := readDescription("absent"); err != errNoDescription {
		t.Error(err)
	}
}
