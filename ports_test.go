package floatip

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDisjointPorts(t *testing.T) {
	for name, tc := range map[string]struct{ list, want string }{
		"none":                      {"", ""},
		"one":                       {"TCP/22", "TCP/22"},
		"twice":                     {"TCP/22 UDP/22 TCP/22", "TCP/22 UDP/22"},
		"single ports stay so":      {"UDP/53 TCP/23 TCP/22", "TCP/22 TCP/23 UDP/53"},
		"a range of one port":       {"TCP/22-22", "TCP/22"},
		"every port":                {"UDP/1-65535 UDP/65535 UDP/1", "UDP/1-65535"},
		"port in a range":           {"TCP/8500 TCP/8000-8999", "TCP/8000-8999"},
		"first and last in a range": {"TCP/8000 TCP/8000-8999 TCP/8999", "TCP/8000-8999"},
		"beside a range":            {"TCP/7999 TCP/8000-8999 TCP/9000", "TCP/7999 TCP/8000-8999 TCP/9000"},
		"ranges overlap":            {"TCP/8500-9500 TCP/8000-8999", "TCP/8000-9500"},
		"by one port":               {"TCP/8999-9500 TCP/8000-8999", "TCP/8000-9500"},
		"touch":                     {"TCP/9000-9500 TCP/8000-8999", "TCP/8000-8999 TCP/9000-9500"},
		"inside another":            {"TCP/8000-8999 TCP/8100-8200 TCP/8900-9100", "TCP/8000-9100"},
		"one after the other":       {"TCP/1-10 TCP/10-20 TCP/20-30 TCP/40-50", "TCP/1-30 TCP/40-50"},
		"of two protocols":          {"UDP/8000-8999 TCP/8500-9500", "TCP/8500-9500 UDP/8000-8999"},
		"twice the same range":      {"UDP/5-9 UDP/5-9", "UDP/5-9"},
	} {
		t.Run(name, func(t *testing.T) {
			if have := portTexts(DisjointPorts(portsOf(t, tc.list))); have != tc.want {
				t.Errorf("want %q, have %q", tc.want, have)
			}
		})
	}
}

// Random lists in a small universe: the same ports, no two entries with one in common, in order, nothing left to join.
func TestDisjointPortsAreTheSame(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		var list []Port
		for range r.IntN(8) {
			p := Port{Protocol: []string{"TCP", "UDP"}[r.IntN(2)], Number: uint16(1 + r.IntN(12))}
			if r.IntN(2) == 0 {
				p.Last = p.Number + uint16(r.IntN(4))
			}
			list = append(list, p)
		}
		before := portTexts(list)
		have := DisjointPorts(list)
		if portTexts(list) != before {
			t.Fatalf("%s was changed", before)
		}
		for _, protocol := range []string{"TCP", "UDP"} {
			for port := range uint16(20) {
				if want, got := covers(list, protocol, port), covers(have, protocol, port); min(want, 1) != got {
					t.Fatalf("%s: %s/%d is in %d entries of it and in %d of %s", before, protocol, port, want, got, portTexts(have))
				}
			}
		}
		for i, p := range have {
			if p.Last != 0 && p.Single() || i > 0 && (p.Protocol < have[i-1].Protocol ||
				p.Protocol == have[i-1].Protocol && p.Number <= have[i-1].Number) {
				t.Fatalf("%s became %s", before, portTexts(have))
			}
		}
	}
}

// covers counts the entries that have a port.
func covers(list []Port, protocol string, port uint16) (n int) {
	for _, p := range list {
		if p.Protocol == protocol && p.Range().Contains(port) {
			n++
		}
	}
	return n
}

func portTexts(list []Port) string {
	var texts []string
	for _, p := range list {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, " ")
}

func portsOf(t *testing.T, texts string) (list []Port) {
	t.Helper()
	for _, text := range strings.Fields(texts) {
		protocol, ports, _ := strings.Cut(text, "/")
		r, err := parsePorts(ports)
		if err != nil {
			t.Fatal(err)
		}
		p := Port{Protocol: protocol, Number: r.First}
		if strings.Contains(ports, "-") {
			p.Last = r.Last
		}
		list = append(list, p)
	}
	return list
}

// earlierPort is what releases before port ranges read and wrote.
type earlierPort struct {
	Protocol string `json:"protocol"`
	Number   uint16 `json:"port"`
}

// A list of single ports is written as ever; one with a range is refused by a reader that knows none, instead of being
// taken for a shorter or an empty list.
func TestEarlierReaders(t *testing.T) {
	earlier := func(list []Port) (have []earlierPort, err error) {
		raw, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.DisallowUnknownFields()
		err = dec.Decode(&have)
		return have, err
	}
	have, err := earlier([]Port{{"TCP", 22, 0}, {"UDP", 53, 0}})
	if diff := cmp.Diff([]earlierPort{{"TCP", 22}, {"UDP", 53}}, have); diff != "" || err != nil {
		t.Errorf("single ports (-want +got):\n%s%v", diff, err)
	}
	if _, err := earlier([]Port{{"TCP", 22, 0}, {"TCP", 8000, 8999}}); err == nil {
		t.Error("a range is read as something else")
	}
	raw, err := json.Marshal([]Port{{"TCP", 22, 0}})
	if want := `[{"protocol":"TCP","port":22}]`; string(raw) != want || err != nil {
		t.Errorf("want %s, have %s, %v", want, raw, err)
	}
}
