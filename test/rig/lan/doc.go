// Package lan builds the network that the rig's cluster stands on, in network namespaces of one machine, and plugs pods
// into it as a CNI does:
//
//	green, management 201.0.0.0/24             red, provider 192.168.100.0/24 (no overlay, plain LAN)
//	    │                                          │
//	    ├── eth0 .1 ── node-1 (control plane) eth1 ┤ .11
//	    ├── eth0 .2 ── node-2 ─────────────── eth1 ┤ .12        node-i: pods 100.0.i.0/24, routed over green
//	    ├── eth0 .3 ── node-3 ─────────────── eth1 ┤ .13
//	    │                                          ├ .200  provider host
//	    └─ green .254 ── gateway ──────────── red ─┘ .1
//	                        └── outside 203.0.113.1 ─── .10  outside host
//
// Every subnet has an IPv6 twin. No namespace has a way out of the machine.
//
// The pods' side is a stand-in for an anti-spoofing CNI: as Kube-OVN's overlay, Cilium or Antrea do, the node's end of a
// pod's veth drops every packet from the pod whose source is not the pod's address, and every packet towards the pod
// whose destination is not. The drops are counted. The nodes run strict reverse-path filtering everywhere.
//
// A fixed translation of the kubernetes service address, and one of the pods' addresses for destinations outside the
// cluster, stand in for kube-proxy and for the CNI's outgoing NAT. Other service addresses are not served.
package lan
