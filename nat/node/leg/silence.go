package leg

import (
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is the unit of the times that the kernel tells of neighbours and forwarding entries: USER_HZ is 100 on all
// architectures that matter (include/asm-generic/param.h).
const clockTick = 10 * time.Millisecond

// GuestSilence returns the time since the bridge of a pod last had a frame from one of macs, which are in the form of
// net.HardwareAddr.String. The bridge notes it with each frame (net/bridge/br_fdb.c, br_fdb_update), so nobody has to
// listen. It is known to 10 ms, and not at all, false, where the bridge does not learn addresses or has aged it out.
func GuestSilence(ns *os.File, bridge string, macs []string) (time.Duration, bool, error) {
	h, err := handleAt(ns)
	if err != nil {
		return 0, false, fmt.Errorf("netlink socket of a pod: %w", err)
	}
	defer h.Close()
	link, err := linkByName(h, bridge)
	if err != nil || link == nil {
		return 0, false, err
	}
	entries, err := h.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		return 0, false, fmt.Errorf("list forwarding entries of %s in a pod: %w", bridge, err)
	}
	silence, known := time.Duration(0), false
	for _, e := range entries {
		if e.MasterIndex != link.Attrs().Index || !slices.Contains(macs, e.HardwareAddr.String()) {
			continue
		}
		if age := time.Duration(e.Updated) * clockTick; !known || age < silence {
			silence, known = age, true
		}
	}
	return silence, known, nil
}
