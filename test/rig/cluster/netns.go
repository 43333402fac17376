package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"

	"floatip.io/floatip/test/rig/process"
)

// namespaces counts those of this program, for their names.
var namespaces atomic.Int32

// NewNetNS makes a network namespace for a control plane without nodes and returns its path: loopback, and the address,
// of whose /24 network it is, on a veth device whose other end is in the same namespace, so that nothing outside can be
// reached. The group notes it for process.Down.
func NewNetNS(ctx context.Context, group *process.Group, address netip.Addr) (string, error) {
	name := fmt.Sprintf("floatip-cluster-%d-%d", os.Getpid(), namespaces.Add(1))
	if err := group.AddNetNS(name); err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"netns", "add", name},
		{"-n", name, "link", "set", "lo", "up"},
		{"-n", name, "link", "add", "green", "type", "veth", "peer", "name", "wire"},
		{"-n", name, "address", "add", netip.PrefixFrom(address, 24).String(), "dev", "green"},
		{"-n", name, "link", "set", "green", "up"},
		{"-n", name, "link", "set", "wire", "up"},
	} {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return "/run/netns/" + name, nil
}
