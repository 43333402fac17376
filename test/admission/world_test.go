package admission

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"

	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig/cluster"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/webhook/admin"
)

// within bounds what one test waits for, many times of what the longest takes.
const within = 10 * time.Minute

// pendingAge takes the place of the 90 s of the manifests: the API server's own limit of 34 s need not be waited for.
const pendingAge = 8 * time.Second

// Addresses of the control plane's namespace. A relay stands between the API server and etcd, and one in each direction
// between the API server and floatip-webhook.
const (
	advertise    = "201.0.0.1"
	etcdRelay    = "127.0.0.1:2378"
	etcdItself   = "127.0.0.1:2379"
	webhookPort  = 9443
	webhookRelay = 9444
	probes       = 9445
	apiRelay     = 6444
)

// world is the control plane that the tests of this package share.
type world struct {
	cluster  *cluster.Cluster
	kubevirt *cluster.KubeVirt
	group    *process.Group
	dir      string
	root     string // the repository
	netns    string
	admin    client.Client
	scheme   *runtime.Scheme
	etcd     *relay // between API server and etcd
	hook     *relay // what floatip-webhook answers the API server
	api      *relay // what the API server answers floatip-webhook
	ledger   *admin.Client
	webhook  *process.Process
	extra    *extraWebhooks
}

// start starts a world that ends with the test.
func start(t testing.TB) *world {
	t.Helper()
	return startWith(t, (*world).startCluster, (*world).installKubeVirt, (*world).install, (*world).startExtra)
}

// startWith starts a world of these parts.
func startWith(t testing.TB, steps ...func(*world, context.Context) error) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		const reason = "the control plane needs a network namespace of its own: run as root"
		if os.Getenv("FLOATIP_TEST_ROOT") != "" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	log.SetLogger(logr.Discard())
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: t.TempDir(), root: root, scheme: runtime.NewScheme()}
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, kubevirtv1.AddToScheme, v1alpha1.AddToScheme,
	} {
		if err := add(w.scheme); err != nil {
			t.Fatal(err)
		}
	}
	if w.group, err = process.NewGroup(filepath.Join(w.dir, "state.json"), false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.end(t) })
	if err := errors.Join(w.group.AddDir(filepath.Dir(w.dir)), w.group.Guard()); err != nil { // of t.TempDir
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for _, step := range steps {
		if err := step(w, ctx); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// end keeps the logs of a failed test, and removes everything else.
func (w *world) end(t testing.TB) {
	if t.Failed() {
		kept, err := os.MkdirTemp("", "floatip-logs-")
		if err == nil {
			err = os.CopyFS(kept, os.DirFS(filepath.Join(w.dir, "cluster", "log")))
		}
		t.Logf("the logs of all components are in %s (%v)", kept, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if err := errors.Join(w.group.StopAll(ctx), process.Down(ctx, w.group.StatePath(), nil)); err != nil {
		t.Errorf("remove the control plane: %v", err)
	}
}

func (w *world) startCluster(ctx context.Context) (err error) {
	bin := filepath.Join(w.root, "bin", "rig")
	if _, err := os.Stat(filepath.Join(bin, "kube-apiserver")); err != nil {
		return fmt.Errorf("%w: build the control plane with `make rig-binaries`", err)
	}
	if w.netns, err = cluster.NewNetNS(ctx, w.group, netip.MustParseAddr(advertise)); err != nil {
		return err
	}
	if w.etcd, err = newRelay(w.netns, etcdRelay, etcdItself); err != nil {
		return err
	}
	w.cluster, err = cluster.Start(ctx, cluster.Options{
		Dir: filepath.Join(w.dir, "cluster"), BinDir: bin, NetNS: w.netns, Group: w.group,
		Advertise: netip.MustParseAddr(advertise), EtcdURL: "http://" + etcdRelay,
		WebhookHost: "floatip-webhook.floatip-system.svc", PodSecurity: "baseline",
	})
	if err != nil {
		return err
	}
	w.admin, err = client.New(w.cluster.RESTConfig(), client.Options{Scheme: w.scheme})
	return err
}

// installKubeVirt allows snapshots, which clones and restores are made of, and passt.
func (w *world) installKubeVirt(ctx context.Context) (err error) {
	if w.kubevirt, err = w.cluster.InstallKubeVirt(ctx); err != nil {
		return err
	}
	kv := &kubevirtv1.KubeVirt{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.KubeVirtNamespace, Name: "kubevirt"}}
	return w.admin.Patch(ctx, kv, client.RawPatch("application/merge-patch+json",
		[]byte(`{"spec":{"configuration":{"developerConfiguration":{"featureGates":["Snapshot","PasstBinding"]}}}}`)))
}

// install applies floatip's manifests, and starts floatip-webhook as the Deployment says, but as a process: there are no
// nodes. Its Service leads to the relay.
func (w *world) install(ctx context.Context) error {
	if _, err := w.cluster.Kubectl(ctx, nil, "apply", "-k", filepath.Join(w.root, "manifests")); err != nil {
		return err
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "floatip-system", Name: "floatip-webhook-relay", Labels: map[string]string{
			discoveryv1.LabelServiceName: "floatip-webhook", discoveryv1.LabelManagedBy: "test",
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{advertise}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
		}},
		Ports: []discoveryv1.EndpointPort{{
			Name: new("webhook"), Port: new(int32(webhookRelay)), Protocol: new(corev1.ProtocolTCP),
		}},
	}
	if err := w.admin.Create(ctx, slice); err != nil {
		return err
	}
	var err error
	w.hook, err = newRelay(w.netns, fmt.Sprintf("%s:%d", advertise, webhookRelay), fmt.Sprintf("127.0.0.1:%d", webhookPort))
	if err != nil {
		return err
	}
	w.api, err = newRelay(w.netns, fmt.Sprintf("%s:%d", advertise, apiRelay), strings.TrimPrefix(w.cluster.URL(), "https://"))
	if err != nil {
		return err
	}
	w.ledger = admin.NewClient(w.path("ledger.sock"))
	return w.startWebhook(ctx)
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// folder returns a new one that goes away with the world, even if the test is killed.
func (w *world) folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(w.dir, "of-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// webhookArgs are those of the Deployment, with what a process needs that is no pod.
func (w *world) webhookArgs(ctx context.Context, more ...string) ([]string, error) {
	raw, err := os.ReadFile(filepath.Join(w.root, "manifests", "webhook", "deployment.yaml"))
	if err != nil {
		return nil, err
	}
	var deployment appsv1.Deployment
	if err := yaml.UnmarshalStrict(raw, &deployment); err != nil {
		return nil, err
	}
	var config corev1.ConfigMap
	if err := w.admin.Get(ctx, client.ObjectKey{Namespace: "floatip-system", Name: "floatip"}, &config); err != nil {
		return nil, err
	}
	expand := strings.NewReplacer(
		"$(FLOATIP_CLUSTER_NETWORKS)", config.Data["cluster-networks"], "$(POD_NAMESPACE)", "floatip-system")
	var args []string
	for _, a := range deployment.Spec.Template.Spec.Containers[0].Args {
		args = append(args, expand.Replace(a))
	}
	kubeconfig, err := w.cluster.ServiceAccountKubeconfig(ctx, "floatip-system", "floatip-webhook")
	if err != nil {
		return nil, err
	}
	if raw, err = os.ReadFile(kubeconfig); err != nil {
		return nil, err
	}
	raw = []byte(strings.ReplaceAll(string(raw), w.cluster.URL(), fmt.Sprintf("https://%s:%d", advertise, apiRelay)))
	authority, _, _ := w.cluster.WebhookClient()
	return append(append(args, more...),
		"--kubeconfig="+kubeconfig,
		"--client-ca-file="+authority,
		"--ledger="+w.path("ledger.db"),
		"--ledger-socket="+w.path("ledger.sock"),
		"--metrics-bind-address=0",
		fmt.Sprintf("--health-probe-bind-address=127.0.0.1:%d", probes),
		"--pending-age="+pendingAge.String(),
		"--v=1",
	), os.WriteFile(kubeconfig, raw, 0o600)
}

// launchWebhook starts floatip-webhook and returns at once.
func (w *world) launchWebhook(ctx context.Context, more ...string) error {
	args, err := w.webhookArgs(ctx, more...)
	if err != nil {
		return err
	}
	w.webhook, err = w.group.Start(process.Spec{
		Name: "floatip-webhook", Path: filepath.Join(w.root, "bin", "floatip-webhook"), Args: args,
		NetNS: w.netns, Log: w.cluster.Log("floatip-webhook"),
	})
	return err
}

func (w *world) startWebhook(ctx context.Context, more ...string) error {
	if err := w.launchWebhook(ctx, more...); err != nil {
		return err
	}
	return w.webhook.WaitReady(ctx, nil, func(ctx context.Context) error {
		_, err := w.ledger.List(ctx, netip.Addr{}, 1)
		return err
	})
}

func (w *world) stopWebhook(ctx context.Context) error { return w.group.Stop(ctx, w.webhook) }

// as returns a client that acts as another user.
func (w *world) as(t testing.TB, user string, groups ...string) client.Client {
	t.Helper()
	config := w.cluster.RESTConfig()
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: groups}
	c, err := client.New(config, client.Options{Scheme: w.scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
