package main

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"floatip.io/floatip/nat/node/leg"
)

// config is what the flags say.
type config struct {
	nodeName        string
	kubeletDir      string
	clusterNetworks string
	sysctlDir       string
	kubeconfig      string
	listen          string
	verbose         bool
}

// hostSysctls is where the DaemonSet mounts the host's /proc/sys/net: the container's own is read-only.
const hostSysctls = "/host/proc/sys/net"

func defaults() config {
	c := config{
		nodeName: os.Getenv("NODE_NAME"), kubeletDir: "/var/lib/kubelet", clusterNetworks: os.Getenv("FLOATIP_CLUSTER_NETWORKS"),
		sysctlDir: leg.DefaultSysctls, listen: "127.0.0.1:9447",
	}
	if _, err := os.Stat(filepath.Join(hostSysctls, "ipv4")); err == nil {
		c.sysctlDir = hostSysctls
	}
	return c
}

func (c *config) register(flags *flag.FlagSet) {
	flags.StringVar(&c.nodeName, "node-name", c.nodeName,
		"name of this node's Node object; with a wrong one the agent works for another node's pods (default $NODE_NAME)")
	flags.StringVar(&c.kubeletDir, "kubelet-dir", c.kubeletDir,
		"the kubelet's directory as this process sees it; with a wrong one no sidecar is ever reached")
	flags.StringVar(&c.clusterNetworks, "cluster-networks", c.clusterNetworks,
		"networks of pods, services and nodes, separated by commas: answers to them take the node's ordinary routes; "+
			"with one missing its clients get no answer (default $FLOATIP_CLUSTER_NETWORKS)")
	flags.StringVar(&c.sysctlDir, "sysctl-dir", c.sysctlDir,
		"the kernel's /proc/sys/net where it is writable; with a read-only one no leg is plugged")
	flags.StringVar(&c.kubeconfig, "kubeconfig", c.kubeconfig,
		"file with the way to the API server; empty: the service account of the pod")
	flags.StringVar(&c.listen, "listen", c.listen,
		"address and port of /healthz, /readyz and /metrics on the node; empty: none")
	flags.BoolVar(&c.verbose, "v", c.verbose, "log each change of the kernel, not only what they add up to")
}

// validate returns the cluster networks. It reports everything that is wrong at once.
func (c config) validate() ([]netip.Prefix, error) {
	var errs []error
	if c.nodeName == "" {
		errs = append(errs, errors.New("--node-name is empty, and so is NODE_NAME"))
	}
	if !filepath.IsAbs(c.kubeletDir) || !filepath.IsAbs(c.sysctlDir) {
		errs = append(errs, fmt.Errorf("--kubelet-dir %q and --sysctl-dir %q must be absolute", c.kubeletDir, c.sysctlDir))
	}
	var networks []netip.Prefix
	for text := range strings.SplitSeq(c.clusterNetworks, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		n, err := netip.ParsePrefix(text)
		if err != nil || n != n.Masked() {
			errs = append(errs, fmt.Errorf("--cluster-networks: %q is not a network", text))
			continue
		}
		networks = append(networks, n)
	}
	return networks, errors.Join(errs...)
}
