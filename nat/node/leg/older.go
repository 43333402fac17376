package leg

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What earlier versions kept in places where nobody looks any more. Routes, rules and entries of theirs are in the tables
// and on the links that are read anyway.
const (
	// olderBridge was the node's end of all legs, with nodeMAC.
	olderBridge = "fip-br"
	// olderTable was the guard in that bridge, in the family bridge.
	olderTable = guardTable
)

// older are the remains of earlier versions, by what they are called in a report.
type older map[string]struct{}

const (
	olderLink  = "bridge " + olderBridge + " of an earlier version"
	olderGuard = "table bridge " + olderTable + " of an earlier version"
)

// readOlder finds what is left. A bridge that somebody else named so has another Ethernet address.
func (n *Node) readOlder(found older, links []netlink.Link) error {
	for _, l := range links {
		if l.Attrs().Name == olderBridge && l.Type() == "bridge" && etherOf(l) == nodeMAC {
			found[olderLink] = struct{}{}
		}
	}
	conn, err := n.nft()
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	switch _, err := conn.ListTableOfFamily(olderTable, nftables.TableFamilyBridge); {
	case err == nil:
		found[olderGuard] = struct{}{}
	case !errors.Is(err, unix.ENOENT):
		return fmt.Errorf("look for table bridge %s: %w", olderTable, err)
	}
	return nil
}

// removeOlder comes last: the legs have left the bridge by then, and have guards of their own.
func (a application) removeOlder() error {
	var errs []error
	if _, there := a.have.older[olderLink]; there {
		errs = append(errs, a.removeLink(olderBridge))
	}
	if _, there := a.have.older[olderGuard]; there {
		conn, err := a.node.nft()
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		defer conn.CloseLasting()
		conn.DelTable(&nftables.Table{Name: olderTable, Family: nftables.TableFamilyBridge})
		errs = append(errs, a.removed(conn.Flush(), olderGuard))
	}
	return errors.Join(errs...)
}
