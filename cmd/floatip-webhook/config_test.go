package main

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// The Deployment starts the binary with flags that it knows and accepts.
func TestDeploymentFlags(t *testing.T) {
	raw, err := os.ReadFile("../../manifests/webhook/deployment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var deployment appsv1.Deployment
	if err := yaml.UnmarshalStrict(raw, &deployment); err != nil {
		t.Fatal(err)
	}
	container := deployment.Spec.Template.Spec.Containers[0]
	expand := strings.NewReplacer("$(FLOATIP_CLUSTER_NETWORKS)", "100.0.0.0/16,10.96.0.0/12", "$(POD_NAMESPACE)", "floatip-system")
	var args []string
	for _, a := range container.Args {
		args = append(args, expand.Replace(a))
	}
	var c config
	flags := flag.NewFlagSet("test", flag.ContinueOnError)
	c.register(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	networks, err := c.validate()
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Prefix{netip.MustParsePrefix("100.0.0.0/16"), netip.MustParsePrefix("10.96.0.0/12")}
	if diff := cmp.Diff(want, networks, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("cluster networks (-want +got):\n%s", diff)
	}
	// What the manifests say is what the binary does without flags.
	standard := defaults()
	standard.clusterNetworks = c.clusterNetworks
	if diff := cmp.Diff(standard, c, cmp.AllowUnexported(config{})); diff != "" {
		t.Errorf("flags (-defaults +manifests):\n%s", diff)
	}
	// The root file system is read-only: what the process makes lies on a volume.
	for _, path := range []string{c.ledger, c.ledgerSocket} {
		if !slices.ContainsFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == filepath.Dir(path) }) {
			t.Errorf("no volume is mounted on %s", filepath.Dir(path))
		}
	}
	listens := map[string]string{
		"webhook": fmt.Sprintf(":%d", c.webhookPort), "metrics": c.metricsAddress, "health": c.probeAddress,
	}
	for _, port := range container.Ports {
		if got, want := fmt.Sprintf(":%d", port.ContainerPort), listens[port.Name]; got != want {
			t.Errorf("port %s is %s, the flag says %s", port.Name, got, want)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*config)
		want   string
	}{
		{"no networks", func(c *config) { c.clusterNetworks = "" }, "--cluster-networks: is empty"},
		{"no network", func(c *config) { c.clusterNetworks = "10.0.0.0" }, `--cluster-networks: "10.0.0.0" is not a network`},
		{"host bits", func(c *config) { c.clusterNetworks = "10.0.0.1/8" }, "write 10.0.0.0/8"},
		{"no image", func(c *config) { c.sidecarImage = "" }, "--sidecar-image must not be empty"},
		{"no history", func(c *config) { c.historyAge, c.historySize = 0, 0 }, "--history-size 0 must be at least 1"},
		{"no age", func(c *config) { c.pendingAge = 0 }, "--pending-age 0s must be more than nothing"},
		{"no port", func(c *config) { c.webhookPort = 0 }, "--webhook-port 0 is no port"},
	} {
		c := defaults()
		c.clusterNetworks = "10.0.0.0/8"
		tc.change(&c)
		if _, err := c.validate(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
	}
}
