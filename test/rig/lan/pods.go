package lan

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
)

// podsDir holds one folder per node, with a file per plugged pod, named by the host part of its address.
const podsDir = "pods"

// lastFile holds the host part that was given out last: addresses go round, so that a stale entry in some cache does
// not meet a new pod at once.
const lastFile = "last"

// The host parts that pods get. 1 stays free for a gateway, 255 is the broadcast address.
const (
	firstPod    = 2
	lastPod     = 254
	podsPerNode = lastPod - firstPod + 1
)

// podGateway and podGateway6 are on the node's end of every pod's veth, as Calico does it: the pod has a host address
// and everything else lies behind this gateway.
var (
	podGateway  = netip.MustParseAddr("169.254.1.1")
	podGateway6 = netip.MustParseAddr("fe80::1")
	gatewayMAC  = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
)

// ErrPodNetworkFull means that every address of a node's pod network is in use.
var ErrPodNetworkFull = errors.New("no free address in the pod network")

// Pod is a pod that is plugged into a node.
type Pod struct {
	// ID is the caller's name for the pod, for instance its UID.
	ID   string `json:"id"`
	Node string `json:"node"`
	// Namespace is the path of the pod's network namespace. Its NIC there is eth0.
	Namespace string     `json:"namespace"`
	Address   netip.Addr `json:"address"`
	Address6  netip.Addr `json:"address6"`
	// Link is the node's end of the pod's veth.
	Link string `json:"link"`
}

// AddPod makes a network namespace for a pod and plugs it into node. A pod that is plugged in already is returned as
// it is. The error is ErrPodNetworkFull if the node has no address left.
func (l *LAN) AddPod(node, id string) (Pod, error) {
	n, err := l.Node(node)
	if err != nil {
		return Pod{}, err
	}
	if p, _, err := l.findPod(node, id); err == nil {
		return p, nil
	}
	p, record, err := l.reserve(n, id)
	if err != nil {
		return Pod{}, fmt.Errorf("plug pod %s into %s: %w", id, node, err)
	}
	if err := l.plugPod(n, p); err != nil {
		return Pod{}, errors.Join(fmt.Errorf("plug pod %s into %s: %w", id, node, err), l.unplug(n, p), os.Remove(record))
	}
	return p, nil
}

// DelPod removes the pod's network namespace and frees its address. It is fine if there is no such pod.
func (l *LAN) DelPod(node, id string) error {
	n, err := l.Node(node)
	if err != nil {
		return err
	}
	p, record, err := l.findPod(node, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := l.unplug(n, p); err != nil {
		return fmt.Errorf("unplug pod %s from %s: %w", id, node, err)
	}
	return os.Remove(record)
}

// findPod returns the pod and the file that records it, or fs.ErrNotExist.
func (l *LAN) findPod(node, id string) (Pod, string, error) {
	records, err := filepath.Glob(filepath.Join(l.Dir, podsDir, node, "[0-9]*"))
	if err != nil {
		return Pod{}, "", err
	}
	for _, record := range records {
		raw, err := os.ReadFile(record)
		if err != nil {
			return Pod{}, "", err
		}
		var p Pod
		if json.Unmarshal(raw, &p) == nil && p.ID == id {
			return p, record, nil
		}
	}
	return Pod{}, "", fmt.Errorf("pod %s on %s: %w", id, node, fs.ErrNotExist)
}

// reserve takes the next free address of the node and records the pod under it. The file's exclusive creation decides
// between callers.
func (l *LAN) reserve(n Node, id string) (Pod, string, error) {
	dir := filepath.Join(l.Dir, podsDir, n.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Pod{}, "", err
	}
	last := lastPod
	if raw, err := os.ReadFile(filepath.Join(dir, lastFile)); err == nil {
		last, _ = strconv.Atoi(string(raw))
	}
	for i := range podsPerNode {
		host := firstPod + (last-firstPod+1+i)%podsPerNode
		p := l.pod(n, id, host)
		record := filepath.Join(dir, strconv.Itoa(host))
		err := writeExclusive(record, p)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return Pod{}, "", err
		}
		return p, record, os.WriteFile(filepath.Join(dir, lastFile), []byte(strconv.Itoa(host)), 0o644)
	}
	return Pod{}, "", ErrPodNetworkFull
}

func (l *LAN) pod(n Node, id string, host int) Pod {
	sum := sha256.Sum256([]byte(id))
	short := hex.EncodeToString(sum[:4])
	return Pod{
		ID: id, Node: n.Name,
		Namespace: l.namespace(n.Name + "-pod-" + short),
		Address:   at(n.PodNetwork, host),
		Address6:  at(n.PodNetwork6, host),
		Link:      "veth" + short,
	}
}

func writeExclusive(path string, p Pod) error {
	raw, err := json.Marshal(p)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	return errors.Join(err, f.Close())
}

func (l *LAN) plugPod(n Node, p Pod) error {
	if _, err := addNamespace(filepath.Base(p.Namespace)); err != nil {
		return err
	}
	// A pod does not forward until KubeVirt makes it (ip_forward of a new namespace is 0), and filters strictly.
	if err := sysctls(p.Namespace, slices.Concat(hostSettings, routerSettings[1:3])); err != nil {
		return err
	}
	err := withHandle(p.Namespace, func(_ *netlink.Handle, podFd int) error {
		return withHandle(n.Namespace, func(h *netlink.Handle, _ int) error { return plugNodeEnd(h, n, p, podFd) })
	})
	if err != nil {
		return err
	}
	if _, err := run(Command(context.Background(), n.Namespace, "nft", "-f", "-"), antispoofRules(p)); err != nil {
		return err
	}
	return withHandle(p.Namespace, func(h *netlink.Handle, _ int) error { return setUpPod(h, p) })
}

// plugNodeEnd makes the veth pair and the node's routes to the pod.
func plugNodeEnd(h *netlink.Handle, n Node, p Pod, podFd int) error {
	attrs := named(p.Link)
	attrs.HardwareAddr = gatewayMAC
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(podFd)}
	if err := h.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth %s: %w", p.Link, err)
	}
	if err := setUp(h, p.Link, hostPrefix(podGateway), hostPrefix(podGateway6)); err != nil {
		return err
	}
	link, err := h.LinkByName(p.Link)
	if err != nil {
		return err
	}
	for _, r := range []struct{ pod, node netip.Addr }{{p.Address, n.Address}, {p.Address6, n.Address6}} {
		route := &netlink.Route{
			LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK,
			Dst: ipNet(hostPrefix(r.pod)), Src: r.node.AsSlice(),
		}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("add route to pod %s by %s: %w", r.pod, p.Link, err)
		}
	}
	return nil
}

// setUpPod configures the pod's end: host addresses, and the gateway as the way to everything.
func setUpPod(h *netlink.Handle, p Pod) error {
	if err := setUp(h, "eth0", hostPrefix(p.Address), hostPrefix(p.Address6)); err != nil {
		return err
	}
	link, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, gateway := range []netip.Addr{podGateway, podGateway6} {
		route := &netlink.Route{
			LinkIndex: link.Attrs().Index, Dst: ipNet(allOf(hostPrefix(gateway))),
			Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
		}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("add default route by %s: %w", gateway, err)
		}
	}
	return nil
}

// unplug removes what plugPod made, as far as it got.
func (l *LAN) unplug(n Node, p Pod) error {
	// `add table` first makes the removal succeed where there is none.
	rules := fmt.Sprintf("add table netdev %[1]s\ndelete table netdev %[1]s\n", filterTable(p.Link))
	_, err := run(Command(context.Background(), n.Namespace, "nft", "-f", "-"), rules)
	removeLink := withHandle(n.Namespace, func(h *netlink.Handle, _ int) error {
		link, err := h.LinkByName(p.Link)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err != nil {
			return err
		}
		return h.LinkDel(link)
	})
	return errors.Join(err, removeLink, removeNamespace(p.Namespace))
}

// hostPrefix returns the network that holds a alone.
func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
