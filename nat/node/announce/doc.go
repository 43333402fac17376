// Package announce makes a provider LAN send packets of floating addresses to this node: it answers ARP requests and
// address probes (RFC 826, RFC 5227), and announces addresses unasked.
//
//	Set ──► addresses ──► burst of announcements, then one every two minutes
//	LAN ──► ARP request or probe for one of them ──► answer within the same wake-up
//	LAN ──► somebody else claims one of them ──► Conflicts
//
// IPv6 addresses are announced by unsolicited neighbour advertisements at the same moments; solicitations for them,
// those of duplicate address detection too, are answered by the kernel's proxy entries.
//
// It works on the NIC's frames, not in the kernel's tables: the kernel's proxy entries answer no probe of RFC 5227, so
// a DHCP client would take the address. They stand behind it for the moments in which no agent runs.
//
// One goroutine owns the socket. A socket that fails, a NIC that goes and comes again, or one that changes its address,
// is noticed, and the addresses are announced anew. The package knows neither routes nor Kubernetes, and it does not
// decide who holds an address.
package announce
