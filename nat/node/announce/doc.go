// Package announce makes a provider LAN send packets of floating addresses to this node: it answers ARP requests and
// neighbour solicitations, probes of both kinds too (RFC 826, RFC 5227; RFC 4861, RFC 4862), announces addresses
// unasked, and finds out who else has them.
//
//	Set(probe)  ──► three probes in a second ──► Free, or Taken by a foreign Ethernet address
//	Set(answer) ──► a burst of announcements, then one every two minutes
//	LAN ──► request, solicitation or probe for one that is answered for ──► answer within the same wake-up
//	LAN ──► somebody else claims one of them ──► defence, at most one in ten seconds; or Moved, if it is another node
//
// It works on the NIC's frames, not in the kernel's tables: the kernel's proxy entries answer no probe of RFC 5227, so
// a DHCP client would take the address, and they notice no conflict. They stand behind it for the moments in which no
// agent runs. The NIC needs no address of its own, of neither family.
//
// Each family has one goroutine that owns its socket. A socket that fails, a NIC that goes and comes again, or one that
// changes its address, is noticed, and the addresses are announced anew. The package knows neither routes nor Kubernetes;
// who shall hold an address, and what becomes of a conflict, is decided elsewhere.
package announce
