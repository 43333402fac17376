package sidecar

import (
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/test/lab"
)

// lookout is a loop that looks when the test says so.
type lookout struct {
	*loop
	kubelet *kubelet
	journal *journal
}

func newLookout(t *testing.T, c nat.Config) lookout {
	t.Helper()
	k, j := newKubelet(t), &journal{}
	config := Config{NATFile: k.path(), Poll: time.Minute, Kernel: c, Log: slog.New(slog.NewTextHandler(j, nil))}
	l := newLoop(config, &board{config: c})
	t.Cleanup(func() {
		if l.kernel != nil {
			l.kernel.Close()
		}
	})
	return lookout{l, k, j}
}

// A kernel that refuses is asked again after 100 ms, 200 ms … 30 s, in one line of the log, and once it gives in the next
// refusal is asked about as soon as the first.
func TestRefusalsAreTriedEverMoreSlowly(t *testing.T) {
	refuse := true
	l := newLookout(t, nat.Config{Dial: func(requests []netlink.Message) ([]netlink.Message, error) {
		if refuse && len(requests) > 1 { // a transaction; lists are empty
			return nil, unix.EPERM
		}
		if len(requests) == 1 && requests[0].Header.Flags&netlink.Dump != 0 {
			return nil, io.EOF
		}
		return nil, nil
	}})
	l.forgetFlows = func(nat.Config, func(nat.Flow) bool) (int, error) { return 0, nil }
	l.kubelet.describe(t, description(binding("192.168.100.50")))
	var waits []time.Duration
	for range 11 {
		waits = append(waits, l.look(time.Unix(0, 0)))
	}
	ms := time.Millisecond
	want := []time.Duration{
		100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 12800 * ms, 25600 * ms, 30000 * ms, 30000 * ms,
	}
	if diff := cmp.Diff(want, waits); diff != "" {
		t.Errorf("waits (-want +have):\n%s", diff)
	}
	if n := l.journal.lines("refused"); n != 1 {
		t.Errorf("11 refusals made %d log lines, want 1", n)
	}
}

var errRefused = errors.New("refused by the test")

// While the connections of an address that goes cannot be deleted, the address stays and nothing passes under it: its
// rules would be gone, and the connections would go on by another link.
func TestAddressWhoseFlowsCannotBeForgotten(t *testing.T) {
	ns := lab.New(t, "pod")
	l := newLookout(t, nat.Config{NetNS: ns.FD()})
	p := description(binding("192.168.100.50"), binding("2001:db8:100::50"))
	l.kubelet.describe(t, p)
	l.look(time.Now())
	forget := l.forgetFlows
	l.forgetFlows = func(nat.Config, func(nat.Flow) bool) (int, error) { return 0, errRefused }
	after := description(binding("2001:db8:100::50"))
	l.kubelet.describe(t, after)
	for range 3 {
		if wait := l.look(time.Now()); wait >= l.config.Poll {
			t.Errorf("tried again after %s only", wait)
		}
		s := l.state.read()
		if s.Phase != handover.PhaseFailed || !strings.Contains(s.Problem, errRefused.Error()) {
			t.Errorf("state: have %+v", s)
		}
		for _, chain := range []string{"floatip_in", "floatip_out"} {
			listing := ns.Run(t, "", "nft", "list", "chain", "ip", "nat", chain)
			_, first, _ := strings.Cut(listing, "{\n\tchain "+chain+" {\n")
			if first = strings.TrimSpace(strings.SplitN(first, "\n", 2)[0]); first != "drop" {
				t.Errorf("%s begins with %q, want drop", chain, first)
			}
			if n := strings.Count(listing, "\tdrop\n"); n != 1 {
				t.Errorf("%s is shut %d times:\n%s", chain, n, listing)
			}
		}
	}
	l.forgetFlows = forget
	l.look(time.Now())
	holds(t, kernel(t, ns), after)
	if s := l.state.read(); s.Phase != handover.PhaseInstalled || s.Problem != "" {
		t.Errorf("state afterwards: have %+v", s)
	}
	if n := l.journal.lines(errRefused.Error()); n != 1 {
		t.Errorf("3 refusals made %d log lines, want 1", n)
	}
}

// Connections that an address which comes makes stale are tried again at each look, and reported until then. The rules
// are in force meanwhile.
func TestFlowsThatCannotBeForgotten(t *testing.T) {
	ns := lab.New(t, "pod")
	l := newLookout(t, nat.Config{NetNS: ns.FD()})
	refuse, asked := true, 0
	l.forgetFlows = func(_ nat.Config, stale func(nat.Flow) bool) (int, error) {
		unanswered := nat.Flow{Source: binding("192.168.100.50").Fixed}
		if asked++; !stale(unanswered) {
			t.Error("what the guest opened before the address came is not among the flows to forget")
		}
		if refuse {
			return 0, errRefused
		}
		return 1, nil
	}
	p := description(binding("192.168.100.50"))
	l.kubelet.describe(t, p)
	for range 3 {
		l.look(time.Now())
		holds(t, kernel(t, ns), p)
		if s := l.state.read(); s.Phase != handover.PhaseInstalled || !strings.Contains(s.Problem, errRefused.Error()) {
			t.Errorf("state: have %+v", s)
		}
	}
	refuse = false
	l.look(time.Now())
	l.look(time.Now())
	if s := l.state.read(); s.Problem != "" || asked != 4 {
		t.Errorf("problem %q after %d tries, want none after 4", s.Problem, asked)
	}
	if n := l.journal.lines(errRefused.Error()); n != 1 {
		t.Errorf("3 refusals made %d log lines, want 1", n)
	}
}
