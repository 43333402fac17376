package virthandler

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"
	v1 "kubevirt.io/api/core/v1"

	dutils "kubevirt.io/kubevirt/pkg/ephemeral-disk-utils"
	"kubevirt.io/kubevirt/pkg/network/cache"
	netsetup "kubevirt.io/kubevirt/pkg/network/setup"
	"kubevirt.io/kubevirt/pkg/network/setup/netpod"
	kfs "kubevirt.io/kubevirt/pkg/os/fs"
	"kubevirt.io/kubevirt/pkg/util"
)

// Namespace is a network namespace by its path.
type Namespace string

// Do runs f in the namespace, on a thread of its own.
func (n Namespace) Do(f func() error) error {
	namespace, err := ns.GetNS(string(n))
	if err != nil {
		return fmt.Errorf("network namespace of the pod: %w", err)
	}
	defer func() { _ = namespace.Close() }()
	return namespace.Do(func(ns.NetNS) error { return f() })
}

// Network sets up the network of pods as virt-handler does.
type Network struct {
	dir string
}

// NewNetwork keeps KubeVirt's network caches below dir, one folder for each node of the rig. Programs nft and
// virt-chroot have to be on PATH.
func NewNetwork(dir string) *Network {
	// KubeVirt gives its cache files to the user qemu; here the machine's root reads them.
	dutils.MockDefaultOwnershipManager()
	preferIPv4()
	return &Network{dir}
}

// podIPVariable is how virt-handler's pod tells KubeVirt's code which family the cluster prefers
// (network/setup/netpod/discover.go).
const podIPVariable = "MY_POD_IP"

func preferIPv4() {
	if _, told := os.LookupEnv(podIPVariable); told {
		return
	}
	if err := os.Setenv(podIPVariable, "0.0.0.0"); err != nil {
		panic("virthandler: a constant name and value are refused by the environment: " + err.Error())
	}
}

// New implements KubeVirt's cache creator: what it keeps in /var/run/kubevirt-private lies in the folder instead.
func (n *Network) New(path string) *cache.Cache {
	return cache.NewCustomCache(filepath.Join(n.dir, strings.TrimPrefix(path, util.VirtPrivateDir)), kfs.New())
}

// Setup does the first phase for a pod: bridge, tap, addresses, sysctls and NAT rules. It is done once for an instance;
// a later call finds that in the cache and does nothing. After a set-up that ended half-way the error is
// KubeVirt's CriticalNetworkError, as it is for virt-handler.
func (n *Network) Setup(vmi *v1.VirtualMachineInstance, networks []v1.Network, pod Namespace) error {
	inPod := func(int) netsetup.NSExecutor { return pod }
	conf := netsetup.NewNetConfWithCustomFactoryAndConfigState(inPod, n, map[string]*netpod.State{}, noPlugins{})
	// The process counts for the SELinux label of the tap device only.
	return conf.Setup(vmi, networks, os.Getpid())
}

// Forget removes what is cached for an instance.
func (n *Network) Forget(vmi *v1.VirtualMachineInstance) error {
	conf := netsetup.NewNetConfWithCustomFactoryAndConfigState(nil, n, map[string]*netpod.State{}, noPlugins{})
	return conf.Teardown(vmi)
}

// noPlugins: the rig's KubeVirt has no network binding plugins.
type noPlugins struct{}

func (noPlugins) GetNetworkBindings() map[string]v1.InterfaceBindingPlugin { return nil }
