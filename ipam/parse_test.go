package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
)

func TestParseAddress(t *testing.T) {
	cases := []struct {
		text, want string // the address, or
		refusal    string // part of the error
	}{
		{"192.0.2.1", "192.0.2.1", ""},
		{"2001:DB8::0001", "2001:db8::1", ""},
		{"2001:0db8:0000:0000:0000:0000:0000:0001", "2001:db8::1", ""},
		{"2001:db8:0:0:1::1", "2001:db8::1:0:0:1", ""},
		{"::ffff:192.0.2.1", "192.0.2.1", ""},
		{"::ffff:c000:201", "192.0.2.1", ""},
		{"192.0.2.1/24", "", `write "192.0.2.1"`},
		{"2001:db8::1/64", "", `write "2001:db8::1"`},
		{" 192.0.2.1", "", `write "192.0.2.1"`},
		{"192.0.2.1\n", "", `write "192.0.2.1"`},
		{"192.0.02.1", "", `write "192.0.2.1"`},
		{"192.000.2.010", "", `write "192.0.2.10"`},
		{"2001:db8::1%eth0", "", `write "2001:db8::1"`},
		{"192.0.2", "", "is not an IP address"},
		{"web-1", "", "is not an IP address"},
		{"", "", "is not an IP address"},
		{"192.0.2.1,192.0.2.2", "", "is not an IP address"},
		{"0.0.0.0", "", "unspecified"},
		{"0.1.2.3", "", "this network"},
		{"127.0.0.1", "", "loopback"},
		{"::1", "", "loopback"},
		{"169.254.1.1", "", "link-local"},
		{"fe80::1", "", "link-local"},
		{"fe80::1%eth0", "", "zone"},
		{"224.0.0.1", "", "multicast"},
		{"ff02::1", "", "multicast"},
		{"255.255.255.255", "", "reserved"},
	}
	for _, c := range cases {
		got, err := ParseAddress(c.text)
		switch {
		case c.refusal == "" && (err != nil || got.String() != c.want):
			t.Errorf("%q: %v, %v, want %s", c.text, got, err, c.want)
		case c.refusal != "" && (err == nil || !strings.Contains(err.Error(), c.refusal)):
			t.Errorf("%q: %v, %v, want a refusal with %q", c.text, got, err, c.refusal)
		}
	}
}

func TestParsePool(t *testing.T) {
	cases := []struct {
		name  string
		text  PoolText
		gives string // the ranges
		wrong string // the error
	}{
		{"network", PoolText{Addresses: []string{"192.0.2.0/29"}}, "192.0.2.1-192.0.2.6", ""},
		{"point to point", PoolText{Addresses: []string{"192.0.2.0/31"}}, "192.0.2.0-192.0.2.1", ""},
		{"one address", PoolText{Addresses: []string{"192.0.2.7"}}, "192.0.2.7", ""},
		{"one address as a network", PoolText{Addresses: []string{"192.0.2.7/32"}}, "192.0.2.7", ""},
		{"IPv6 network", PoolText{Addresses: []string{"2001:db8::/126"}}, "2001:db8::1-2001:db8::3", ""},
		{"IPv6 of two", PoolText{Addresses: []string{"2001:db8::/127"}}, "2001:db8::-2001:db8::1", ""},
		{"ranges that touch", PoolText{Addresses: []string{"192.0.2.1-192.0.2.4", "192.0.2.5 - 192.0.2.9"}}, "192.0.2.1-192.0.2.9", ""},
		{"ranges that overlap", PoolText{Addresses: []string{"192.0.2.4-192.0.2.9", "192.0.2.1-192.0.2.5"}}, "192.0.2.1-192.0.2.9", ""},
		{
			"everything taken out",
			PoolText{
				Addresses: []string{"192.0.2.0-192.0.2.255"}, Networks: []string{"192.0.2.0/24"},
				Gateways: []string{"192.0.2.1"}, Exclude: []string{"192.0.2.8/29", "192.0.2.100-192.0.2.254"},
			},
			"192.0.2.2-192.0.2.7 192.0.2.16-192.0.2.99", "",
		},
		{"both families", PoolText{Addresses: []string{"2001:db8::1-2001:db8::2", "192.0.2.1"}}, "192.0.2.1 2001:db8::1-2001:db8::2", ""},
		{"a range over loopback", PoolText{Addresses: []string{"126.255.255.254-128.0.0.1"}}, "126.255.255.254-126.255.255.255 128.0.0.0-128.0.0.1", ""},
		{"router by its link-local address", PoolText{Addresses: []string{"2001:db8::1"}, Gateways: []string{"fe80::1"}}, "2001:db8::1", ""},

		{"nothing", PoolText{}, "", "addresses: a pool needs at least one"},
		{"nothing left", PoolText{Addresses: []string{"192.0.2.1"}, Gateways: []string{"192.0.2.1"}}, "", "nothing is left"},
		{"host bits", PoolText{Addresses: []string{"192.0.2.7/24"}}, "", `addresses[0]: "192.0.2.7/24" has host bits set, write "192.0.2.0/24"`},
		{"backwards", PoolText{Addresses: []string{"192.0.2.1", "192.0.2.9-192.0.2.3"}}, "", `addresses[1]: the range runs backwards, write "192.0.2.3-192.0.2.9"`},
		{"two families", PoolText{Addresses: []string{"192.0.2.1-2001:db8::1"}}, "", "two families"},
		{"mapped network", PoolText{Addresses: []string{"::ffff:192.0.2.0/120"}}, "", `IPv4-mapped network, write "192.0.2.0/24"`},
		{"blanks in a network", PoolText{Addresses: []string{" 192.0.2.0 /24"}}, "", `addresses[0]: " 192.0.2.0 /24" is not a network, write "192.0.2.0/24"`},
		{"leading zeros in a network", PoolText{Addresses: []string{"192.000.02.0/024"}}, "", `write "192.0.2.0/24"`},
		{"zone of a network", PoolText{Addresses: []string{"2001:db8::%eth0/64"}}, "", `write "2001:db8::/64"`},
		{"length that no network has", PoolText{Addresses: []string{"192.0.2.0/33"}}, "", `write "192.0.2.0/24" or "2001:db8::/64"`},
		{"network and mask", PoolText{Addresses: []string{"192.0.2.0/255.255.255.0"}}, "", `write "192.0.2.0/24" or`},
		{"leading zeros in a range", PoolText{Addresses: []string{"192.0.2.01-192.0.2.9"}}, "", `write "192.0.2.1"`},
		{"CIDR suffix of a gateway", PoolText{Addresses: []string{"192.0.2.7"}, Gateways: []string{"192.0.2.1/24"}}, "", `gateways[0]: "192.0.2.1/24" is not an IP address, write "192.0.2.1"`},
		{"zone of a gateway", PoolText{Addresses: []string{"2001:db8::7"}, Gateways: []string{"fe80::1%eth0"}}, "", `write "fe80::1"`},
		{"all of IPv4", PoolText{Addresses: []string{"0.0.0.0/0"}}, "", "addresses[0]"},
		{"loopback", PoolText{Addresses: []string{"127.0.0.0/8"}}, "", "loopback"},
		{"bad exclude", PoolText{Addresses: []string{"192.0.2.1"}, Exclude: []string{"x"}}, "", "exclude[0]: \"x\" is not an IP address"},
		{"two gateways", PoolText{Addresses: []string{"192.0.2.1"}, Gateways: []string{"192.0.2.2", "192.0.2.3"}}, "", "gateways[1]: a second IPv4 gateway"},
		{"two networks", PoolText{Addresses: []string{"192.0.2.1"}, Networks: []string{"192.0.2.0/24", "192.0.2.0/25"}}, "", "networks[1]: a second IPv4 network"},
		{"several faults", PoolText{Addresses: []string{"a", "b"}, Gateways: []string{"c"}}, "", "addresses[1]: \"b\" is not"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p, err := ParsePool(c.text)
			var texts []string
			for _, r := range p.Addresses {
				texts = append(texts, r.String())
			}
			if diff := cmp.Diff(c.gives, strings.Join(texts, " ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
				t.Errorf("error %v, want %q", err, c.wrong)
			}
			var fields FieldErrors
			if err != nil && !errors.As(err, &fields) {
				t.Errorf("%T is no FieldErrors", err)
			}
		})
	}
}

// Of pools that overlap, the older one has the addresses.
func TestOverlappingPools(t *testing.T) {
	older, younger := pool(t, "z-older", "192.0.2.1-192.0.2.10"), pool(t, "a-younger", "192.0.2.6-192.0.2.20")
	older.Created, younger.Created = time.Unix(1, 0), time.Unix(2, 0)
	shares := divide([]Pool{younger, older})
	if diff := cmp.Diff("192.0.2.11-192.0.2.20", shares[0].ranges[0].String()); diff != "" {
		t.Errorf("the younger pool gives (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("192.0.2.6-192.0.2.10", shares[0].overlap["z-older"][0].String()); diff != "" {
		t.Errorf("the overlap (-want +got):\n%s", diff)
	}
	if len(shares[1].ranges) != 1 || len(shares[1].overlap) != 0 {
		t.Errorf("the older pool lost something: %+v", shares[1])
	}
}

// What no host of a network may have is given by no pool, in which pool it is written: gateways at all, the first and last
// address of a network by no younger pool. What one pool excludes another may give.
func TestNetworksOfOtherPools(t *testing.T) {
	parse := func(age int64, text PoolText) Pool {
		p, err := ParsePool(text)
		if err != nil {
			t.Fatal(err)
		}
		p.Created, p.Quarantine = time.Unix(age, 0), 0
		return p
	}
	older := parse(1, PoolText{
		Name: "older", Addresses: []string{"192.0.2.8/29"}, Exclude: []string{"192.0.2.12"},
		Networks: []string{"192.0.2.0/27", "2001:db8::/64"}, Gateways: []string{"192.0.2.1", "2001:db8::1"},
	})
	younger := parse(2, PoolText{Name: "younger", Addresses: []string{"192.0.2.0-192.0.2.40", "2001:db8::-2001:db8::3"}, Gateways: []string{"192.0.2.10"}})
	l, _ := start(t, older, younger)
	given := map[string]string{}
	for {
		offer, err := l.Reserve(t.Context(), ask(Request{Families: []Family{IPv4}}))
		if err != nil {
			break
		}
		given[offer.Addresses[0].String()] = offer.Pools[0]
	}
	want := map[string]string{}
	for i := range 41 {
		a := fmt.Sprintf("192.0.2.%d", i)
		switch {
		case i == 0, i == 31, i == 8, i == 15: // networks and broadcasts of the older pool
		case i == 1, i == 10: // gateways, also that of the younger pool
		case i > 8 && i < 15 && i != 12:
			want[a] = "older"
		default:
			want[a] = "younger"
		}
	}
	if diff := cmp.Diff(want, given); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	six, err := l.Reserve(t.Context(), ask(Request{Families: []Family{IPv6}}))
	if err != nil || six.Addresses[0] != addr("2001:db8::2") {
		t.Errorf("the first IPv6 address is %v, %v; want 2001:db8::2, the first that is no router's", six.Addresses, err)
	}
	if _, err := l.Reserve(t.Context(), ask(Request{Addresses: []netip.Addr{addr("192.0.2.1")}})); !errors.Is(err, ErrNeverGiven) {
		t.Errorf("the gateway: %v", err)
	}
}

// A network that is accepted is one as it is written; what its refusal says to write is accepted, or an example.
func FuzzParseNetwork(f *testing.F) {
	for _, text := range []string{"192.0.2.0/24", "2001:db8::/64", "192.0.2.7/24", " 192.0.02.0/024", "::ffff:192.0.2.0/120", "fe80::%1/64", "1.2.3.4/-1"} {
		f.Add(text)
	}
	written := regexp.MustCompile(`write ("[^"]*")`)
	f.Fuzz(func(t *testing.T, text string) {
		network, err := ParseNetwork(text)
		if err == nil {
			if again, err := ParseNetwork(network.String()); err != nil || again != network || network.Masked() != network || network.Addr().Is4In6() {
				t.Errorf("%q: %s reads as %s, %v", text, network, again, err)
			}
			return
		}
		if m := written.FindStringSubmatch(err.Error()); m != nil {
			advice, quoted := strconv.Unquote(m[1])
			if _, err := netip.ParsePrefix(advice); quoted != nil || err != nil {
				t.Errorf("%q: told to write %s, which is no network", text, m[1])
			}
		}
	})
}

// What is accepted has one spelling, and is read from it again.
func FuzzParseAddress(f *testing.F) {
	for _, text := range []string{"192.0.2.1", "::ffff:1.2.3.4", "2001:DB8::1", "fe80::1%1", "010.1.1.1", "1.2.3.4/8", " 1.2.3.4"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := ParseAddress(text)
		if err != nil {
			return
		}
		if a.Is4In6() || a.Zone() != "" || unusable(a) != "" {
			t.Errorf("%q: accepted as %s", text, a)
		}
		if again, err := ParseAddress(a.String()); err != nil || again != a {
			t.Errorf("%q: %s reads as %s, %v", text, a, again, err)
		}
		if strings.ContainsAny(text, " \t\n/%") {
			t.Errorf("%q: accepted", text)
		}
	})
}

// A pool hands out only what is written and not excluded, in order and without doubles.
func FuzzParsePool(f *testing.F) {
	f.Add("192.0.2.0/24", "192.0.2.7-192.0.2.9", "192.0.2.1")
	f.Add("2001:db8::/64", "2001:db8::1", "fe80::1")
	f.Add("10.0.0.1-10.0.0.3", "0.0.0.0/1", "10.0.0.2")
	f.Fuzz(func(t *testing.T, addresses, exclude, gateway string) {
		p, err := ParsePool(PoolText{Addresses: []string{addresses}, Exclude: []string{exclude}, Gateways: []string{gateway}})
		if err != nil {
			return
		}
		given, _ := ParseRange(addresses)
		without, _ := ParseRange(exclude)
		var before netip.Addr
		for _, r := range p.Addresses {
			if r.Last.Less(r.First) || before.IsValid() && !before.Less(r.First) {
				t.Errorf("ranges out of order: %v", p.Addresses)
			}
			before = r.Last
			for _, a := range []netip.Addr{r.First, r.Last} {
				if !given.Contains(a) || without.Contains(a) || a.String() == gateway || unusable(a) != "" {
					t.Errorf("%s gives %s, excluded %s, gateway %s", addresses, a, exclude, gateway)
				}
			}
		}
	})
}

// Decoding accepts what encoding writes and fails on the rest without a panic.
func FuzzDecode(f *testing.F) {
	key := appendAddress(nil, netip.MustParseAddr("2001:db8::1"))
	line := Allocation{Address: netip.MustParseAddr("2001:db8::1"), Pool: "red", Owner: vm("a"), State: Bound, Since: time.Unix(1, 2).UTC()}
	f.Add(key, seal(key, appendAllocation(nil, &line)))
	owned := ownerKey(nil, floatip.Claim{7}, line.Address)
	f.Add(owned, seal(owned, appendOwner(nil, line.Owner)))
	f.Add(numberKey(7), appendEntry(nil, numberKey(7), &entry{
		first: 9, time: line.Since,
		steps:   []step{{after: line, action: Freed, cause: Cause{User: "alice"}}, {after: Allocation{Address: line.Address}}},
		cursors: []poolCursor{{"red", cursor{}}},
		claims:  []claims{{line.Address, []Claimant{{Address: line.Address, Owner: vm("b"), Since: line.Since}}}, {address: line.Address}},
	}))
	f.Add(key, appendItem(appendItem(nil, item{key, []byte("one")}), item{append(key[:len(key):len(key)], 1), nil}))
	f.Add([]byte("red"), encodeCursor([]byte("red"), cursor{}))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		for _, v := range [][]byte{value, seal(key, append([]byte(nil), value...))} { // also with a good checksum
			if line, err := decodeAllocation(key, v); err == nil {
				again, err := decodeAllocation(key, seal(key, appendAllocation(nil, &line)))
				if err != nil || again != line {
					t.Errorf("%+v became %+v, %v", line, again, err)
				}
			}
			if e, err := decodeEntry(key, v); err == nil {
				again, err := decodeEntry(key, appendEntry(nil, key, &e))
				if diff := cmp.Diff(e, again, cmp.Exporter(func(reflect.Type) bool { return true })); err != nil || diff != "" {
					t.Errorf("%v (-first +again):\n%s", err, diff)
				}
			}
			if claim, a, owner, err := decodeOwner(key, v); err == nil {
				_, _, again, err := decodeOwner(key, seal(key, appendOwner(nil, owner)))
				if err != nil || again != owner || !bytes.Equal(ownerKey(nil, claim, a), key) {
					t.Errorf("%+v became %+v, %v", owner, again, err)
				}
			}
			if first := readItems(key, v); first != nil {
				var again []byte
				for _, one := range first {
					again = appendItem(again, one)
				}
				if diff := cmp.Diff(first, readItems(key, again), cmp.AllowUnexported(item{})); diff != "" {
					t.Errorf("a block (-first +again):\n%s", diff)
				}
			}
			decodeClaimant(key, v)
			decodeCursor(key, v)
		}
	})
}

// readItems returns the items of a block, nil if it cannot be read.
func readItems(key, block []byte) (all []item) {
	var blocks items
	err := blocks.read(key, block, func(key, value []byte) error {
		all = append(all, item{key, value})
		return nil
	})
	if err != nil {
		return nil
	}
	return all
}

// Any bytes as a file: the walk ends, with an error or with keys in order.
func FuzzTree(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 'k', 'v'}, uint64(2))
	f.Fuzz(func(t *testing.T, pages []byte, root uint64) {
		const size = 64
		file := append(make([]byte, 2*size), pages...)
		m := meta{pages: uint64(len(file) / size), pageSize: size, root: root}
		n := 0
		walkTree(strings.NewReader(string(file)), m, func(_, _, _ []byte) error {
			if n++; n > len(file) {
				t.Fatal("the walk has no end")
			}
			return nil
		})
	})
}
