// Package fastpath lets the packets of established connections past the node's routing, filters and connection tracking,
// between the provider NIC and the legs.
//
//	LAN ── NIC ── ingress: a flow, address here? ──────────────── fwd ── leg ── pod
//	                │ seen                  ▲ flow
//	                ▼ routing, filters …    │
//	LAN ── NIC ── fwd ─────────── ingress: a flow, or seen? ─────────── leg ── pod
//
// The first packet of each direction takes the node's ordinary way, through everything that somebody may have put there.
// What the NIC hands in for a floating address is noted as seen. When the leg hands in the answer to that, with the very
// same addresses and ports, then nothing on the node translates this connection, and whatever filters packets has let the
// first one through: the two make a flow, and its packets go straight from one link to the other from then on. A
// connection that the node does translate, to a load balancer's address for instance, never has the same addresses on
// both sides, and stays on the ordinary way in both directions.
//
// It is what a flowtable of nftables does (Documentation/networking/nf_flowtable.rst), for kernels without one, and
// without connection tracking on the node: that loses sight of a flow, and forgets it within two minutes since it has
// seen the first packet alone. SYN is never forwarded here, so that a new connection with old ports is judged anew.
//
// Only whole TCP and UDP packets without IPv6 extension headers are forwarded, and ICMP errors about those of a flow,
// which connection tracking could not make sense of any more. All else takes the ordinary way, as does everything when
// the sets are full.
//
// One table of family netdev holds all of it. Its rules depend on the provider networks; the addresses of this node are
// elements of a map, from which one is taken before its routes go. The guard (package leg) comes first at every leg.
//
// Connections older than Life take the ordinary way: connection tracking picks them up in the middle, which it only does with
// nf_conntrack_tcp_loose, its default. Where that is off there is no fast path. So do those that came by live migration, until
// Adopt finds that the node forwards them.
package fastpath
