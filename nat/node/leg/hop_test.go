package leg

import (
	"net/netip"
	"testing"
)

// Networks keep their marks, get the free ones in order, and a fourth one of a family has none.
func TestAssignMarks(t *testing.T) {
	network := func(prefix string, mark uint32) Network {
		return Network{Prefix: netip.MustParsePrefix(prefix), Interface: "red0", Mark: mark}
	}
	inUse := []Network{network("192.0.2.0/24", 0x2000), network("198.51.100.0/24", 0), network("2001:db8:1::/64", 0x3000)}
	got := AssignMarks([]Network{
		network("10.1.0.0/16", 0x2000), network("192.0.2.0/24", 0), network("198.51.100.0/24", 0),
		network("203.0.113.0/24", 0), network("2001:db8:1::/64", 0), network("2001:db8:2::/64", 0),
	}, inUse)
	for i, want := range []uint32{0x1000, 0x2000, 0x3000, 0, 0x3000, 0x1000} {
		if got[i].Mark != want {
			t.Errorf("%s has mark %#x, want %#x", got[i].Prefix, got[i].Mark, want)
		}
	}
}
