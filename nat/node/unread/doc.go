// Package unread saves what a guest had no time to read before it left by live migration.
//
// Between the guest's last instruction on its old node and the moment in which the LAN knows the new one, packets go to the
// tap device of a machine that stands still. They would be lost with it: a TCP connection then waits for the peer's
// retransmission timer, 200 ms at least, after a pause of 10.
//
// A Recorder sees what goes to the tap device, and keeps the last of it. The kernel counts what qemu, or vhost-net for it, has
// read from the device (drivers/net/tun.c, tun_put_user, in the device's sent packets). So the packets can be told apart: what was read
// is in the guest's memory, and has migrated with it; what was not is sent to the new node, and put into the guest's tap
// device there. No packet reaches the guest twice by that: where the Recorder cannot know, it takes a packet as read.
package unread
