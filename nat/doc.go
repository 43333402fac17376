// Package nat says what floatip keeps in the kernel of a virt-launcher pod, writes it, and reads it back.
//
// The way of a packet through the pod, with our chains above and KubeVirt's below the line:
//
//	                 prerouting -110   arriving -99                    postrouting 90   guard 110
//	leg fip0 ──────────────┬────────────────┬──────── routing ──────────────┬───────────────┬───► guest k6t-eth0
//	guest k6t-eth0 ────────┤                │  table 77 for mark 0x77       │               │
//	eth0 ───────── prerouting -100 ─────────┘     is the leg        postrouting 100 ────────┴───► eth0, fip0
//
// We share KubeVirt's tables "ip nat" and "ip6 nat" and own the chains, sets and counters in them that start with
// "floatip_"; we read and write nobody else's. KubeVirt's first rule after routing masquerades all that the guest sends,
// and the first nat rule that matches decides, so ours stand at hooks of their own, 10 earlier than its. They need
// nothing of KubeVirt's: the tables may be empty, half made or complete.
//
//	floatip_prerouting   floating → fixed address, or drop           floatip_postrouting  fixed → floating address
//	floatip_arriving     who may come in by the leg (floatip_in); marks what the guest sends for the leg (floatip_guest), and
//	                     nothing from the guest under another address than its own (floatip_foreign)
//	floatip_mark_out     marks the pod's ICMP errors for the leg
//	floatip_guard        who may be called by the leg (floatip_out, which also clamps TCP segments); nothing leaves by the
//	                     leg under another name (floatip_stray), and nothing by another link under this one
//
// With delivery Routed, where the CNI's link carries other packets too, floatip_firewall at the forward hook and
// floatip_leaving stand in place of arriving, guest, foreign, mark_out and stray.
//
// Desired turns the description of a pod's addresses into a value, Apply makes the kernel equal to it in one
// transaction, Read returns what is there in the same type, and Diff says where they part. ForgetFlows deletes
// connections that a change made wrong: the kernel translates established ones as before, whatever the rules say.
//
// The package makes no link, address or route; that is the node agent's part. It imports no Kubernetes.
package nat
