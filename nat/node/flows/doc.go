// Package flows copies tracked connections of floating addresses from one pod to another: what the kernel of the source
// knows of them is read (Read), judged by the receiver (Entry.Check), and written where the guest arrives (Put).
//
// Connections that a firewall admitted, or that were opened by the guest, are "established" for the kernel of the pod
// they were opened in. In another pod they would be news that nobody asked for. The fixed and the floating address are the
// same on both sides, so an entry is valid there as it is.
//
// The package knows neither nodes nor agents, and no rule of nftables.
package flows
