package admission

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// burst is how many VMs are created at once.
const burst = 100

// BenchmarkCreates creates a hundred VMs at once on the real API server, over and over: in a namespace without any hook
// but KubeVirt's, in one with two hooks that do nothing, and in one that opted in. Each round has all three. Figures are
// medians over the rounds of what one create takes, as its client sees it, and of what the API server itself says about
// the hooks; added is floatip's two phases beyond the two that do nothing.
func BenchmarkCreates(b *testing.B) {
	w := start(b)
	w.withoutRelay(b)
	plain, nothing := w.tenant(b, 1), w.tenant(b, 1)
	for _, n := range []*tenant{plain, nothing} {
		n.optOutOfAll()
	}
	allow := func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse { return allowed() }
	nothing.mutating(allow)
	nothing.validating(allow)
	floating := w.tenant(b, 1000)

	figures := map[string][]float64{}
	note := func(name string, value float64) { figures[name] = append(figures[name], value) }
	paths := []struct {
		name  string
		n     *tenant
		hooks []string
	}{
		{"plain", plain, nil},
		{"nothing", nothing, []string{"zz-" + nothing.ns + ".example.com"}},
		{"floatip", floating, []string{"vm-create.floatip.io", "vm-commit.floatip.io"}},
	}
	for _, p := range paths { // connections, caches
		p.n.ctx = b.Context() // all rounds together take longer than a test may
		p.n.createMany("warm", 10)
	}
	round := 0
	for b.Loop() {
		round++
		took := map[string][]float64{}
		for i := range paths {
			p := paths[(i+round)%len(paths)]
			before := w.hookSeconds(b, p.hooks)
			took[p.name] = p.n.createMany(fmt.Sprintf("round-%d", round), burst)
			if len(p.hooks) > 0 {
				note(p.name+"-hooks-mean-ms", w.hookSeconds(b, p.hooks).since(before)*1e3)
			}
			for q, at := range map[string]float64{"p50": .5, "p99": .99} {
				note(p.name+"-"+q+"-ms", quantile(took[p.name], at))
			}
		}
		for q, at := range map[string]float64{"p50": .5, "p99": .99} {
			note("added-"+q+"-ms", quantile(took["floatip"], at)-quantile(took["nothing"], at))
		}
	}
	b.ReportMetric(0, "ns/op")
	for name, values := range figures {
		b.ReportMetric(quantile(values, .5), name)
	}
}

func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// withoutRelay lets the API server call floatip-webhook itself.
func (w *world) withoutRelay(b *testing.B) {
	b.Helper()
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "floatip-system", Name: "floatip-webhook-relay"}}
	patch := fmt.Sprintf(`[{"op":"replace","path":"/ports/0/port","value":%d}]`, webhookPort)
	if err := w.admin.Patch(b.Context(), slice, client.RawPatch("application/json-patch+json", []byte(patch))); err != nil {
		b.Fatal(err)
	}
}

// optOutOfAll takes the label from the tenant's namespace: none of floatip's hooks is called.
func (n *tenant) optOutOfAll() {
	n.t.Helper()
	if _, err := n.cluster.Kubectl(n.ctx, nil, "label", "namespace", n.ns, "floatip.io/enabled-"); err != nil {
		n.t.Fatal(err)
	}
}

// createMany creates VMs at once and returns what each took in milliseconds. It returns when KubeVirt has seen all of
// them, so that what comes next is alone.
func (n *tenant) createMany(prefix string, count int) []float64 {
	n.t.Helper()
	took := make([]float64, count)
	var all sync.WaitGroup
	for i := range took {
		vm := n.newVM(fmt.Sprintf("%s-%d", prefix, i), nil)
		all.Go(func() {
			begun := time.Now()
			if err := n.admin.Create(n.ctx, vm); err != nil {
				n.t.Error(err)
			}
			took[i] = time.Since(begun).Seconds() * 1e3
		})
	}
	all.Wait()
	n.quiet("VMs of "+n.ns, func() string {
		var vms metav1.PartialObjectMetadataList
		vms.APIVersion, vms.Kind = "kubevirt.io/v1", "VirtualMachineList"
		if err := n.admin.List(n.ctx, &vms, client.InNamespace(n.ns)); err != nil {
			n.t.Fatal(err)
		}
		var versions strings.Builder
		for _, vm := range vms.Items {
			versions.WriteString(vm.ResourceVersion + " ")
		}
		return versions.String()
	})
	return took
}

// spent is what the API server says about hooks: seconds in all, and the most calls of one of them.
type spent struct{ seconds, calls float64 }

// since returns the seconds of all hooks for one create.
func (s spent) since(before spent) float64 {
	return (s.seconds - before.seconds) / (s.calls - before.calls)
}

// hookSeconds reads apiserver_admission_webhook_admission_duration_seconds.
func (w *world) hookSeconds(b *testing.B, hooks []string) (all spent) {
	b.Helper()
	if len(hooks) == 0 {
		return all
	}
	set, err := kubernetes.NewForConfig(w.cluster.RESTConfig())
	if err != nil {
		b.Fatal(err)
	}
	raw, err := set.RESTClient().Get().AbsPath("/metrics").DoRaw(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	const metric = "apiserver_admission_webhook_admission_duration_seconds"
	calls := map[string]float64{}
	for lines := bufio.NewScanner(strings.NewReader(string(raw))); lines.Scan(); {
		line := lines.Text()
		i := slices.IndexFunc(hooks, func(h string) bool { return strings.Contains(line, `name="`+h+`"`) })
		_, text, _ := strings.Cut(line, "} ")
		value, err := strconv.ParseFloat(text, 64)
		if i < 0 || err != nil {
			continue
		}
		switch {
		case strings.HasPrefix(line, metric+"_sum"):
			all.seconds += value
		case strings.HasPrefix(line, metric+"_count"):
			kind := "admit"
			if strings.Contains(line, `type="validating"`) {
				kind = "validating"
			}
			calls[hooks[i]+kind] += value
		}
	}
	for _, count := range calls {
		all.calls = max(all.calls, count)
	}
	return all
}
