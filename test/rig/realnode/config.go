package realnode

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"floatip.io/floatip/test/rig/cgroup"
)

// Config says what a node is and with what it runs. Every field is required.
type Config struct {
	// Name is that of the Node object.
	Name string `json:"name"`
	// Dir is the node's folder, an absolute path.
	Dir string `json:"dir"`
	// Address is the one under which the API server reaches the kubelet.
	Address netip.Addr `json:"address"`
	// PodNetwork is where the CNI plugins take the pods' addresses from. The first one is the bridge's.
	PodNetwork netip.Prefix `json:"podNetwork"`
	// Nameserver is what pods find in resolv.conf.
	Nameserver netip.Addr `json:"nameserver"`
	// Kubeconfig is the kubelet's; ClientCA is the file of the authority that signed the API server's client certificate.
	Kubeconfig string `json:"kubeconfig"`
	ClientCA   string `json:"clientCA"`
	// Kubelet is the program. Packages is the folder of unpacked Debian packages, one folder for each.
	Kubelet  string `json:"kubelet"`
	Packages string `json:"packages"`
}

// Paths in the node's folder.
const (
	configFile  = "real-node.json"
	varLibDir   = "var-lib"
	varLogDir   = "var-log"
	etcDir      = "etc"
	tmpDir      = "tmp"
	sysctlDir   = "sysctl"
	imagesDir   = "images"
	kubeletLog  = "kubelet.log"
	runtimeLog  = "containerd.log"
	kubeletRoot = "/var/lib/kubelet" // in the node
	runtimeSock = "/run/containerd/containerd.sock"
	runtimeRoot = "/var/lib/containerd"
)

// The packages of test/packages.txt, and where they have their programs.
const (
	containerdPrograms = "containerd/usr/bin"
	cniPlugins         = "containernetworking-plugins/usr/lib/cni"
)

// Write writes the configuration of a node into its folder, where the command real-node reads it, and the configuration
// files of the node's programs. It returns the path that real-node wants.
func (c Config) Write() (string, error) {
	for _, dir := range []string{varLibDir, varLogDir, etcDir, tmpDir, sysctlDir} {
		if err := os.MkdirAll(c.path(dir), 0o755); err != nil {
			return "", err
		}
	}
	files := map[string]any{
		filepath.Join("cni", "10-rig.conflist"): c.network(),
		"kubelet.yaml":                          c.kubeletConfiguration(), // JSON is YAML
	}
	for name, content := range files {
		raw, err := json.MarshalIndent(content, "", "  ")
		if err != nil {
			return "", err
		}
		if err := c.writeEtc(name, string(raw)); err != nil {
			return "", err
		}
	}
	for name, content := range map[string]string{
		"containerd.toml": c.containerdConfiguration(),
		filepath.Join("certs.d", "_default/hosts.toml"): mirror,
		"resolv.conf": fmt.Sprintf("nameserver %s\n", c.Nameserver),
	} {
		if err := c.writeEtc(name, content); err != nil {
			return "", err
		}
	}
	raw, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return "", err
	}
	return c.path(configFile), os.WriteFile(c.path(configFile), raw, 0o644)
}

func read(path string) (c Config, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("read %s: %w", path, err)
	}
	return c, nil
}

func (c Config) path(parts ...string) string {
	return filepath.Join(append([]string{c.Dir}, parts...)...)
}

func (c Config) etc(name string) string { return c.path(etcDir, name) }

func (c Config) writeEtc(name, content string) error {
	path := c.etc(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o644)
}

// network is the CNI configuration: a bridge that is the pods' gateway. What leaves the cluster is translated by the
// LAN's rules, so the plugins need no iptables.
func (c Config) network() any {
	return map[string]any{
		"cniVersion": "0.4.0", "name": "rig",
		"plugins": []any{map[string]any{
			"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
			"ipam": map[string]any{
				"type":   "host-local",
				"ranges": []any{[]any{map[string]any{"subnet": c.PodNetwork.String()}}},
				"routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
			},
		}},
	}
}

// kubeletConfiguration is what kubeadm writes, less what a node needs that shares its machine with the rig: thresholds
// of the whole machine's disk and memory evict nothing, and control groups lie below one of the rig's.
func (c Config) kubeletConfiguration() any {
	none := "0%"
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address": c.Address.String(),
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": c.ClientCA},
		},
		"authorization":               map[string]any{"mode": "Webhook"},
		"cgroupDriver":                "cgroupfs",
		"cgroupRoot":                  cgroup.Of(c.Dir),
		"failCgroupV1":                false, // kubelet 1.35 and later refuse cgroup v1 otherwise
		"enforceNodeAllocatable":      []string{},
		"makeIPTablesUtilChains":      false,
		"failSwapOn":                  false,
		"oomScoreAdj":                 0, // kubelet's own; it goes on without, but says so every minute
		"containerRuntimeEndpoint":    "unix://" + runtimeSock,
		"clusterDNS":                  []string{c.Nameserver.String()},
		"clusterDomain":               "cluster.local",
		"resolvConf":                  c.etc("resolv.conf"),
		"volumePluginDir":             filepath.Join(kubeletRoot, "volume-plugins"),
		"serializeImagePulls":         false,
		"imageGCHighThresholdPercent": 100,
		"evictionHard": map[string]string{
			"memory.available": none, "nodefs.available": none, "nodefs.inodesFree": none,
			"imagefs.available": none, "imagefs.inodesFree": none,
		},
	}
}

// containerdConfiguration is that of a kubeadm node with the cgroupfs driver. A machine that is a container or a sandbox
// itself may not let its root lower oom_score_adj (CAP_SYS_RESOURCE): containers then keep containerd's.
func (c Config) containerdConfiguration() string {
	return fmt.Sprintf(`version = 2
root = %q
state = "/run/containerd"
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = %q
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
`, runtimeRoot, runtimeSock, SandboxImage, filepath.Join(c.Packages, cniPlugins), c.etc("cni"), c.etc("certs.d"))
}
