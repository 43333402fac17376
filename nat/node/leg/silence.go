package leg

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// clockTick is the unit of the times that the kernel tells of neighbours and forwarding entries: USER_HZ is 100 on all
// architectures that matter (include/asm-generic/param.h).
const clockTick = 10 * time.Millisecond

// GuestHeard returns when the bridge of a pod last had a frame from one of macs, which are in the form of
// net.HardwareAddr.String. The bridge notes it with each frame (net/bridge/br_fdb.c, br_fdb_update), so nobody has to
// listen. It is known to 10 ms, and not at all, false, where the bridge does not learn addresses or has aged it out.
func GuestHeard(ns *os.File, bridge string, macs []string) (heard time.Time, known bool, err error) {
	h, err := handleAt(ns)
	if err != nil {
		return heard, false, fmt.Errorf("netlink socket of a pod: %w", err)
	}
	defer h.Close()
	link, err := linkByName(h, bridge)
	if err != nil || link == nil {
		return heard, false, err
	}
	entries, err := h.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		return heard, false, fmt.Errorf("list forwarding entries of %s in a pod: %w", bridge, err)
	}
	now := time.Now()
	for _, e := range entries {
		if e.MasterIndex != link.Attrs().Index || !slices.Contains(macs, e.HardwareAddr.String()) {
			continue
		}
		if at := now.Add(-time.Duration(e.Updated) * clockTick); !known || at.After(heard) {
			heard, known = at, true
		}
	}
	return heard, known, nil
}

// GuestWatch notes when a guest was last heard at the moment in which its bridge forgets it. Qemu ends as soon as its guest
// has left; the tap device then has no carrier, and the bridge drops what it knows about that port (net/bridge/br_stp_if.c,
// br_stp_disable_port). That is often earlier than anybody asks.
type GuestWatch struct {
	known chan struct{} // closed when heard is known
	mu    sync.Mutex    // guards heard
	heard time.Time
}

// watchWait bounds the wait for the word of an entry that was found gone: it is on its way then.
const watchWait = 200 * time.Millisecond

// WatchGuest begins to watch the bridges of a pod for guests with one of macs, until ctx is done. The kernel is asked for
// nothing but to tell of entries that go: packets cost nothing more.
func WatchGuest(ctx context.Context, ns *os.File, macs []string) (*GuestWatch, error) {
	at := netns.NsHandle(int(ns.Fd()))
	gone := make(chan netlink.NeighUpdate)
	err := netlink.NeighSubscribeWithOptions(gone, ctx.Done(), netlink.NeighSubscribeOptions{Namespace: &at})
	if err != nil {
		return nil, fmt.Errorf("listen for forwarding entries of a pod: %w", err)
	}
	w := &GuestWatch{known: make(chan struct{})}
	go func() {
		for u := range gone {
			if u.Type == unix.RTM_DELNEIGH && u.Family == unix.AF_BRIDGE && slices.Contains(macs, u.HardwareAddr.String()) {
				w.note(time.Now().Add(-time.Duration(u.Updated) * clockTick))
			}
		}
	}()
	return w, nil
}

func (w *GuestWatch) note(heard time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.heard.IsZero() {
		close(w.known)
	}
	if heard.After(w.heard) {
		w.heard = heard
	}
}

// Heard returns when the guest was last heard, to 10 ms, false where no bridge has forgotten it. It is asked once GuestHeard
// knows nothing, and waits a moment for the kernel's word. A nil GuestWatch knows nothing.
func (w *GuestWatch) Heard() (time.Time, bool) {
	if w == nil {
		return time.Time{}, false
	}
	select {
	case <-w.known:
	case <-time.After(watchWait):
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heard, !w.heard.IsZero()
}
