package unread

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	vishnetns "github.com/vishvananda/netns"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/netns"
)

// ErrNoPort: the bridge has not exactly one port, the guest's.
var ErrNoPort = errors.New("the bridge of the pod has not just the guest's port")

// Frame is what the guest's device reads: a virtio_net_hdr (include/uapi/linux/virtio_net.h, 10 bytes), which tells of
// checksums and segments to be made, and an Ethernet frame.
type Frame []byte

// headerLength is that of virtio_net_hdr.
const headerLength = 10

// Ethernet is the frame without the header, nil where there is none.
func (f Frame) Ethernet() []byte {
	if len(f) < headerLength+14 {
		return nil
	}
	return f[headerLength:]
}

// port is the device of a guest.
type port struct {
	netlink *netlink.Handle
	index   int
	file    *os.File // of a packet socket
}

// openPort finds the only port of a bridge. Filter is what the socket is to hear, nil for nothing.
func openPort(ns *os.File, bridge string, filter []bpf.Instruction) (*port, error) {
	h, err := netlink.NewHandleAt(vishnetns.NsHandle(int(ns.Fd())), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket of a pod: %w", err)
	}
	p := &port{netlink: h}
	if p.index, err = portOf(h, bridge); err == nil {
		err = netns.Do(ns, func() (err error) {
			p.file, err = openSocket(p.index, filter)
			return err
		})
	}
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("port of %s in a pod: %w", bridge, err)
	}
	return p, nil
}

func (p *port) close() {
	p.file.Close()
	p.netlink.Close()
}

func portOf(h *netlink.Handle, bridge string) (int, error) {
	master, err := h.LinkByName(bridge)
	if err != nil {
		return 0, err
	}
	links, err := h.LinkList()
	if err != nil {
		return 0, err
	}
	found := 0
	for _, l := range links {
		if l.Attrs().MasterIndex != master.Attrs().Index {
			continue
		}
		if found != 0 {
			return 0, ErrNoPort
		}
		found = l.Attrs().Index
	}
	if found == 0 {
		return 0, ErrNoPort
	}
	return found, nil
}

func openSocket(index int, filter []bpf.Instruction) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	address := unix.SockaddrLinklayer{Ifindex: index}
	err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
	if err == nil && filter != nil {
		address.Protocol = htons(unix.ETH_P_ALL)
		err = errors.Join(listenTo(fd, filter), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer))
	}
	if err == nil {
		err = unix.Bind(fd, &address) // hears nothing before, as its protocol is 0
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "packet"), nil
}

func listenTo(fd int, filter []bpf.Instruction) error {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return err
	}
	program := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		program[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// Put gives frames to the guest whose device is the only port of bridge in ns, in their order. It returns how many.
func Put(ns *os.File, bridge string, frames []Frame) (int, error) {
	p, err := openPort(ns, bridge, nil)
	if err != nil {
		return 0, err
	}
	defer func() { go p.close() }() // takes ten milliseconds and more, and the guest may get more
	for i, f := range frames {
		if _, err := p.file.Write(f); err != nil {
			return i, fmt.Errorf("give a packet to the guest: %w", err)
		}
	}
	return len(frames), nil
}
