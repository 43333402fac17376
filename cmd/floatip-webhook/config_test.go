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
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
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

// The history is as long as the flags say.
func TestHistoryFlags(t *testing.T) {
	c := defaults()
	flags := flag.NewFlagSet("floatip-webhook", flag.ContinueOnError)
	c.register(flags)
	if err := flags.Parse([]string{"--history-age=1h", "--history-size=7"}); err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	options := c.ledgerOptions()
	options.Now = func() time.Time { return now }
	ledger, err := ipam.Open(filepath.Join(t.TempDir(), "ledger.db"), options)
	if err != nil {
		t.Fatal(err)
	}
	defer ledger.Close()
	adopt := func(n int) (events int) {
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})
		owner := floatip.Owner{Namespace: "vms", Name: "a", UID: fmt.Sprintf("uid-%d", n)}
		if _, err := ledger.Adopt(t.Context(), []ipam.Sighting{{Address: a, Owner: owner, Source: "FloatingIP"}}, false); err != nil {
			t.Fatal(err)
		}
		all, err := ledger.History(ipam.Query{})
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	for n := range 20 {
		if events := adopt(1 + n); events != min(n+1, 7) {
			t.Errorf("after %d events the history has %d", n+1, events)
		}
	}
	now = now.Add(2 * time.Hour)
	adopt(100)
	if events := adopt(101); events != 2 {
		t.Errorf("two hours later it has %d events, want the two of now", events)
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
