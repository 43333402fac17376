package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"floatip.io/floatip"
)

// config is what the flags say.
type config struct {
	nodeName        string
	kubeletDir      string
	clusterNetworks string
	sysctlDir       string
	kubeconfig      string
	listen          string
	nodeAddress     string
	peerPort        int
	fastPath        bool
	verbose         bool
}

func defaults() config {
	return config{
		nodeName: os.Getenv("NODE_NAME"), kubeletDir: "/var/lib/kubelet", clusterNetworks: os.Getenv("FLOATIP_CLUSTER_NETWORKS"),
		listen: "127.0.0.1:9447", nodeAddress: os.Getenv("NODE_ADDRESS"), peerPort: 9448,
		fastPath: true,
	}
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
		"the host's /proc/sys/net where it is mounted writable; empty: /proc/sys/net, or an own instance where that is read-only")
	flags.StringVar(&c.kubeconfig, "kubeconfig", c.kubeconfig,
		"file with the way to the API server; empty: the service account of the pod")
	flags.StringVar(&c.listen, "listen", c.listen,
		"address and port of /healthz, /readyz and /metrics on the node; empty: none")
	flags.StringVar(&c.nodeAddress, "node-address", c.nodeAddress,
		"the node's address on the cluster's network, where agents of other nodes ask for the connections of a guest that "+
			"migrates to them; empty: guests move without what their pods' kernels know of their connections (default $NODE_ADDRESS)")
	flags.IntVar(&c.peerPort, "peer-port", c.peerPort, "port on --node-address for agents of other nodes")
	flags.BoolVar(&c.fastPath, "fast-path", c.fastPath, "let packets of established connections past the node's routing and filters; "+
		"off for a node that filters each packet which it forwards (docs/decisions/fastpath.md)")
	flags.BoolVar(&c.verbose, "v", c.verbose, "log each change of the kernel, not only what they add up to")
}

// validate returns the cluster networks. It reports everything that is wrong at once.
func (c config) validate() ([]netip.Prefix, error) {
	var errs []error
	if c.nodeName == "" {
		errs = append(errs, errors.New("--node-name is empty, and so is NODE_NAME"))
	}
	if !filepath.IsAbs(c.kubeletDir) {
		errs = append(errs, fmt.Errorf("--kubelet-dir %q must be absolute", c.kubeletDir))
	}
	if c.sysctlDir != "" && !filepath.IsAbs(c.sysctlDir) {
		errs = append(errs, fmt.Errorf("--sysctl-dir %q must be absolute", c.sysctlDir))
	}
	if _, err := netip.ParseAddr(c.nodeAddress); c.nodeAddress != "" && err != nil {
		errs = append(errs, fmt.Errorf("--node-address: %w", err))
	}
	if c.peerPort < 1 || c.peerPort > 65535 {
		errs = append(errs, fmt.Errorf("--peer-port %d is none", c.peerPort))
	}
	networks, err := floatip.ParseNetworks(c.clusterNetworks)
	if err != nil {
		errs = append(errs, fmt.Errorf("--cluster-networks: %w", err))
	}
	return networks, errors.Join(errs...)
}

// peerAddress is where other agents reach this one, "" for nowhere.
func (c config) peerAddress() string {
	if c.nodeAddress == "" {
		return ""
	}
	return net.JoinHostPort(c.nodeAddress, strconv.Itoa(c.peerPort))
}
