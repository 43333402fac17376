package announce

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// diary is a wire that writes down what it is to say.
type diary struct {
	wire      // what these tests do not use
	announced []netip.Addr
	groups    []netip.Addr
	err       error
}

func (d *diary) announce(a netip.Addr) error {
	if d.err == nil {
		d.announced = append(d.announced, a)
	}
	return d.err
}

func (d *diary) listen(list []netip.Addr) error { d.groups = list; return nil }

func (d *diary) setDeadline(time.Time) error { return nil }

// TestAnnouncedWhenSet: who sets or adds an address does not wait until the loop is woken to announce it. What the loop finds
// then is what is left to do: to tell of it, once.
func TestAnnouncedWhenSet(t *testing.T) {
	one, two := netip.MustParseAddr("192.168.100.50"), netip.MustParseAddr("192.168.100.51")
	var told []netip.Addr
	r := NewResponder(Responder{Changed: func(a netip.Addr, s Standing) {
		if s.State != Held || s.Announced.IsZero() {
			t.Errorf("told of %s: %+v", a, s)
		}
		told = append(told, a)
	}})
	d, h := &diary{}, r.four
	act := func(want error) {
		t.Helper()
		if err := h.act(d, farAway()); !errors.Is(err, want) {
			t.Errorf("the loop meets %v, want %v", err, want)
		}
	}
	r.Set([]netip.Addr{one}, nil)
	h.install(d, nic{running: true})
	if len(d.announced) != 0 {
		t.Errorf("%v is announced as a socket is opened, want that the loop does it", d.announced)
	}
	act(nil)
	r.Set([]netip.Addr{one, two}, nil)
	if want := []netip.Addr{one, two}; !slices.Equal(d.announced, want) || len(d.groups) != 2 || len(told) != 1 {
		t.Errorf("announced %v, want %v, before the loop is woken; groups %v, told of %v", d.announced, want, d.groups, told)
	}
	act(nil)
	act(nil)
	if len(d.announced) != 2 || !slices.Equal(told, []netip.Addr{one, two}) {
		t.Errorf("announced %v, told of %v: want each once", d.announced, told)
	}

	broken, three := errors.New("broken"), two.Next()
	d.err = broken
	r.Add(three)
	act(broken) // which has the loop open another socket
	d.err = nil
	h.install(d, nic{running: true})
	act(nil)
	if !slices.Contains(d.announced, three) || !slices.Contains(told, three) {
		t.Errorf("announced %v, told of %v: want %s when the wire works again", d.announced, told, three)
	}
	r.Add(three.Next())
	if last := d.announced[len(d.announced)-1]; last != three.Next() {
		t.Errorf("%s was announced last, want %s, before the loop is woken", last, three.Next())
	}
}
