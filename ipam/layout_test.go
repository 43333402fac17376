package ipam

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
)

// The package comment draws every bucket that the file has, and no other.
func TestDrawing(t *testing.T) {
	comment, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	var drawn, have []string
	for _, m := range regexp.MustCompile(`(?m)^//\t([a-z]+)/\S+.* = `).FindAllSubmatch(comment, -1) {
		drawn = append(drawn, string(m[1]))
	}
	for _, b := range buckets {
		have = append(have, string(b))
	}
	slices.Sort(drawn)
	slices.Sort(have)
	if diff := cmp.Diff(have, slices.Compact(drawn)); diff != "" {
		t.Errorf("buckets (-in the file +in the package comment):\n%s", diff)
	}
}

// Keys sort as addresses do, IPv4 first, also behind a claim.
func TestKeysSortAsAddresses(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	one := func() netip.Addr {
		var raw [16]byte
		for i := range raw {
			raw[i] = byte(random.Uint32())
			if random.IntN(2) == 0 {
				raw[i] = [...]byte{0, 1, 0x7f, 0x80, 0xff}[random.IntN(5)]
			}
		}
		if random.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte(raw[:4]))
		}
		return netip.AddrFrom16(raw)
	}
	for range 100_000 {
		a, b := one(), one()
		if random.IntN(4) == 0 {
			b = a.Next()
		}
		if !b.IsValid() || a.Is4In6() || b.Is4In6() {
			continue
		}
		want := a.Compare(b)
		if got := bytes.Compare(appendAddress(nil, a), appendAddress(nil, b)); got != want {
			t.Fatalf("%s and %s: their keys compare as %d, they as %d", a, b, got, want)
		}
		claim := floatip.Claim{byte(random.Uint32())}
		if got := bytes.Compare(ownerKey(nil, claim, a), ownerKey(nil, claim, b)); got != want {
			t.Fatalf("%s and %s: their owner keys compare as %d, they as %d", a, b, got, want)
		}
	}
}

// What is in memory follows what is held: an empty /8 and an empty /64 are one run each, and what 40 000 addresses took is
// given back with them.
func TestMemoryFollowsWhatIsHeld(t *testing.T) {
	for _, network := range []string{"10.0.0.0/8", "2001:db8::/64"} {
		b, h, _ := filled(t, network, 40_000, true)
		family := FamilyOf(h.ranges[0].First)
		free := &h.free[slot(family)]
		if len(free.chunks) < 100 || b.records.last < 40_000 {
			t.Fatalf("%s: %d chunks, %d records: the test shows nothing", network, len(free.chunks), b.records.last)
		}
		for _, line := range b.filter(func(*record) bool { return true }) {
			b.remove(line.Address)
		}
		if len(free.chunks) != 1 || free.chunks[0].n != 1 {
			t.Errorf("%s: empty again it has %d chunks", network, len(free.chunks))
		}
		if rooms := len(b.records.slabs); rooms > 3 {
			t.Errorf("%s: empty again it keeps room for %d records", network, rooms*slabSize)
		}
		if problems := b.audit(nil); len(problems) > 0 {
			t.Errorf("%s: %v", network, problems)
		}
	}
}
