// Package leg says what the kernel of a node, and that of a pod's namespace, shall hold so that packets of floating
// addresses travel past the CNI, and makes it so.
//
//	LAN ── NIC ─┬─ rule 4990 iif NIC to POOL → table 7102  staged, if any ──────────┐
//	            └─ rule 5004 to POOL         → table 7101  active addresses alone ──┴─ fip<hash> ═ veth ═ fip0 [pod]
//	            ┌─ rule 5003 from POOL       → table 7101  active, throw for the cluster, POOL, default by the gateway
//	LAN ── NIC ─┘  rule 5002 iif lo, iif NIC: goto 5004, past that
//
// The number of rules depends on the number of provider networks alone; addresses are entries of a trie (routes) and of
// hashes (neighbours). The main table and the CNI's tables are not touched, and packets of legs carry no mark on the
// node. The guard, a chain of nftables at the ingress of each leg, lets no leg send with another source than its own
// addresses. Why the legs meet in no bridge: docs/decisions/datapath.md.
//
// Desired state is a value that a pure function makes from a Config; the kernel is read into the same type; what
// differs is changed. Nothing is remembered between calls, so a restart is no event.
//
// Some settings of the provider NIC stay after the last address left (forwarding, proxy_delay, proxy_ndp): somebody
// else may rely on them by then.
//
// The package answers no ARP (see package announce), knows no Kubernetes, and writes none of the pod's nftables rules.
package leg
