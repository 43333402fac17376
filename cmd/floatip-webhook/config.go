package main

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/webhook/kubevirt"
)

// config is what the flags say.
type config struct {
	ledger            string
	ledgerSocket      string
	historyAge        time.Duration
	historySize       int
	pendingAge        time.Duration
	sidecarImage      string
	clusterNetworks   string
	kubevirtNamespace string
	namespace         string
	webhookHost       string
	webhookPort       int
	metricsAddress    string
	probeAddress      string
	clientCA          string
	tlsDir            string
	kubeconfig        string
	verbosity         int
}

// defaults are those of the manifests.
func defaults() config {
	return config{
		ledger:            "/var/lib/floatip/ledger.db",
		ledgerSocket:      "/run/floatip/ledger.sock",
		historyAge:        90 * 24 * time.Hour,
		historySize:       200_000,
		pendingAge:        90 * time.Second,
		sidecarImage:      "floatip/floatip-sidecar:dev",
		clusterNetworks:   os.Getenv("FLOATIP_CLUSTER_NETWORKS"),
		kubevirtNamespace: kubevirt.DefaultNamespace,
		namespace:         "floatip-system",
		webhookPort:       9443,
		metricsAddress:    ":8080",
		probeAddress:      ":8081",
	}
}

// register adds the flags, whose defaults are what c holds.
func (c *config) register(flags *flag.FlagSet) {
	flags.StringVar(&c.ledger, "ledger", c.ledger,
		"file of the ledger. It needs a disk that survives the pod; if it is lost, it is rebuilt from FloatingIP objects and VMs.")
	flags.StringVar(&c.ledgerSocket, "ledger-socket", c.ledgerSocket,
		"unix socket for the command \"floatip-webhook ledger\", mode 0600; empty for none.")
	flags.DurationVar(&c.historyAge, "history-age", c.historyAge,
		"how long the ledger remembers who had which address. What is older is dropped and cannot be asked for any more.")
	flags.IntVar(&c.historySize, "history-size", c.historySize,
		"how many events the ledger remembers, some 200 bytes each; the oldest are dropped first. The ledger's volume must hold them.")
	flags.DurationVar(&c.pendingAge, "pending-age", c.pendingAge,
		"how long an address waits for its VM to be stored before the API server is asked whether it is, and the address is "+
			"freed if it is not. The API server stores an object up to 34 s after it was admitted: less than that frees addresses of VMs.")
	flags.StringVar(&c.sidecarImage, "sidecar-image", c.sidecarImage,
		"image of the container that is injected into virt-launcher pods. Running VMs keep theirs until they are restarted or migrated.")
	flags.StringVar(&c.clusterNetworks, "cluster-networks", c.clusterNetworks,
		"networks of pods, services and nodes, separated by commas; default from FLOATIP_CLUSTER_NETWORKS. Guests reach them "+
			"with the pod's address. A network that is missing sees the floating address and cannot answer it.")
	flags.StringVar(&c.kubevirtNamespace, "kubevirt-namespace", c.kubevirtNamespace,
		"namespace of KubeVirt's service accounts. If it is wrong, no pod gets a sidecar. The admission policies name it too.")
	flags.StringVar(&c.namespace, "namespace", c.namespace,
		"namespace of floatip itself: of its Service, which the certificate names, and of the Secret with the certificate authority.")
	flags.StringVar(&c.webhookHost, "webhook-host", c.webhookHost,
		"address that the webhook server listens on; empty for all.")
	flags.IntVar(&c.webhookPort, "webhook-port", c.webhookPort,
		"port that the webhook server listens on; the Service points to it.")
	flags.StringVar(&c.metricsAddress, "metrics-bind-address", c.metricsAddress,
		"address of the metrics, without encryption; 0 for none.")
	flags.StringVar(&c.probeAddress, "health-probe-bind-address", c.probeAddress,
		"address of /healthz and /readyz; 0 for none.")
	flags.StringVar(&c.clientCA, "client-ca-file", c.clientCA,
		"authority of client certificates, PEM. If it is set, only clients with such a certificate are served; the API server "+
			"must be configured to present one.")
	flags.StringVar(&c.tlsDir, "tls-dir", c.tlsDir,
		"folder with tls.crt and tls.key, as cert-manager's Secret is mounted; read again when they change. If it is set, floatip "+
			"makes no certificates itself, and somebody else writes the caBundle of the webhook configurations.")
	flags.StringVar(&c.kubeconfig, "kubeconfig", c.kubeconfig,
		"file with the address of the API server and the credentials; empty inside of a cluster.")
	flags.IntVar(&c.verbosity, "v", c.verbosity,
		"how much is logged: 0 for changes of state, 1 for every decision.")
}

// ledgerOptions are the bounds of the ledger's history.
func (c *config) ledgerOptions() ipam.Options {
	return ipam.Options{HistoryAge: c.historyAge, HistorySize: c.historySize}
}

// validate reports everything that is wrong, and returns the cluster networks.
func (c *config) validate() ([]netip.Prefix, error) {
	var errs []error
	for _, f := range []struct{ name, value string }{
		{"ledger", c.ledger}, {"sidecar-image", c.sidecarImage},
		{"kubevirt-namespace", c.kubevirtNamespace}, {"namespace", c.namespace},
	} {
		if f.value == "" {
			errs = append(errs, fmt.Errorf("--%s must not be empty", f.name))
		}
	}
	if c.webhookPort < 1 || c.webhookPort > 65535 {
		errs = append(errs, fmt.Errorf("--webhook-port %d is no port", c.webhookPort))
	}
	if c.pendingAge <= 0 {
		errs = append(errs, fmt.Errorf("--pending-age %s must be more than nothing", c.pendingAge))
	}
	if c.historyAge <= 0 {
		errs = append(errs, fmt.Errorf("--history-age %s must be more than nothing", c.historyAge))
	}
	if c.historySize < 1 {
		errs = append(errs, fmt.Errorf("--history-size %d must be at least 1", c.historySize))
	}
	networks, err := floatip.ParseNetworks(c.clusterNetworks)
	if err == nil && len(networks) == 0 {
		err = errors.New(`is empty, write the networks of pods, services and nodes: "10.244.0.0/16,10.96.0.0/12"`)
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("--cluster-networks: %w", err))
	}
	return networks, errors.Join(errs...)
}
