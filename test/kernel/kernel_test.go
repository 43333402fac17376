package kernel

import (
	"testing"
)

// Folders of the module, as make leaves them.
const (
	root     = "../.."
	cache    = root + "/bin/rig/guest"
	packages = root + "/bin/packages/"
)

// onNode are tests of the agent.
func onNode(names ...string) Tests { return Tests{Package: "nat/node", Names: names} }

// TestDevices: the agent on links that this machine's kernel may not be able to make.
func TestDevices(t *testing.T) {
	t.Parallel()
	const openVSwitch, common = packages + "openvswitch-switch/usr/", packages + "openvswitch-common/usr/"
	tests := onNode("TestOnDevices", "TestBondFailsOver", "TestVRF", "TestOpenVSwitch", "TestOtherVLANs", "TestMoveOnDevices")
	tests.Modules = []string{"br_netfilter"} // as on a node with kube-proxy
	tests.Programs = []string{
		openVSwitch + "lib/openvswitch-switch/ovs-vswitchd", openVSwitch + "bin/ovs-vsctl", common + "sbin/ovsdb-server",
		common + "bin/ovsdb-tool",
	}
	const schema = "share/openvswitch/vswitch.ovsschema"
	tests.Files = map[string]string{schema: openVSwitch + schema}
	tests.On(t, root, cache)
}

// TestNAT: the rules in the pod, as the kernel lists them, and who reaches whom by them beside KubeVirt's own. All of package
// nat takes this machine more than ten minutes.
func TestNAT(t *testing.T) {
	t.Parallel()
	tests := Tests{Package: "nat", Names: []string{"TestListing/walled", "TestFlowsBesideEveryMasquerade/ports-dual-stack"}}
	tests.On(t, root, cache)
}

// TestSidecar: a table that somebody flushes is put back, and a connection ends with the address that it was made to.
func TestSidecar(t *testing.T) {
	t.Parallel()
	tests := Tests{Package: "nat/sidecar", Names: []string{"TestRepairs/table_flushed", "TestLiveChange/address_replaced"}}
	tests.On(t, root, cache)
}

// TestLean: the agent on a kernel that has not everything, and has loaded nothing.
func TestLean(t *testing.T) {
	t.Parallel()
	tests := onNode("TestLeanKernel")
	tests.Without = []string{"nft_fwd_netdev", "br_netfilter"}
	tests.On(t, root, cache)
}

// TestNoIPv6: the agent on a kernel that was told to do without IPv6.
func TestNoIPv6(t *testing.T) {
	t.Parallel()
	tests := onNode("TestKernelWithoutIPv6")
	tests.Options = "ipv6.disable=1"
	tests.On(t, root, cache)
}
