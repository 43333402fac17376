package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"floatip.io/floatip/test/rig"
	"floatip.io/floatip/test/story"
)

// within bounds everything that one test waits for, many times of what that takes. The longest is a guest's boot, some ten
// seconds on a busy machine.
const within = 6 * time.Minute

// TestFloatip runs in order on one rig: a rig costs half a minute, and the first test wants the ledger fresh. TestRealNode
// runs beside it, on another.
func TestFloatip(t *testing.T) {
	t.Parallel()
	s := start(t, rig.Options{})
	for _, test := range []struct {
		name string
		run  func(*testing.T, *story.Story)
	}{
		{"the story of the demo", tell},
		{"a foreign host has an address: the next one, or wait", foreignHost},
		{"stop and start keep the address", stopAndStart},
		{"NetworkPolicies hold on the floating address of a running VM", policiesOfARunningVM},
		{"allow list and pool narrow it down", allowLists},
		{"the webhook changes the firewall of launchers, and nothing else of pods", webhookMayOnly},
		{"an evicted VM starts on another node, in a closed namespace closed from the first packet", evictedFromAClosedNamespace},
		{"of two who request one address at the same time, one gets it", concurrentRequests},
		{"a webhook killed between two creates loses nothing and doubles nothing", killedWebhook},
		{"without the webhook, others than VMs that ask are not affected", webhookDown},
		{"what a tenant writes himself is worth nothing", forgedAnnotations},
		{"overlapping pools, and the nodes' own addresses", overlappingPools},
		{"a pool in use shrinks and goes only when it is drained and empty; one address of each family", shrinkAndDrain},
		{"the cluster's IPv6 networks are configured", sixNetworks},
		{"the ledger's file is lost: it is rebuilt, and no address moves", lostLedger}, // with a new webhook
		{"an old copy of the ledger is put back: what disagrees is held until somebody decides", disputedAddress},
		{"a deleted VM gives its address back, and it rests", release},
		{"people ask the ledger in the webhook's container", ledgerCommands},
		{"a VM with an address of each family; its guest reboots", dualStack},
		{"KubeVirt takes the guests' hints, and what is left alone is told", guestHints},
		{"a VM in a restricted namespace is reached by NAT on the node", restrictedNodeNAT},
		{"what the API server trusts the webhook by heals by itself", certificatesHeal},
		{"no right is granted that nobody used, and none was missing", rightsUsed},
		{"Kube-OVN's objects follow addresses and VMs", kubeOVN}, // with rights of its own
	} {
		if !t.Run(test.name, func(t *testing.T) { test.run(t, s) }) {
			return // the next ones stand on this one
		}
	}
}

// start starts a rig that ends with the test.
func start(t *testing.T, options rig.Options) *story.Story {
	t.Helper()
	if os.Geteuid() != 0 {
		const reason = "the rig makes network namespaces: run as root"
		if os.Getenv("FLOATIP_TEST_ROOT") != "" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	progress := func(line string) { t.Log(line) }
	ctx, cancel := context.WithTimeout(t.Context(), 2*within)
	defer cancel()
	options.Progress = progress
	r, err := rig.Start(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			dir, err := story.SaveLogs(r)
			t.Logf("the logs of all components are in %s (%v)", dir, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if err := r.Stop(ctx); err != nil {
			t.Errorf("remove the rig: %v", err)
			return
		}
		if left, err := r.Leftovers(); err != nil || len(left) > 0 {
			t.Errorf("left of the stopped rig (%v):\n%s", err, strings.Join(left, "\n"))
		}
	})
	s, err := story.New(r, root, progress)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// logger tells the story to the test's log.
type logger struct{ *testing.T }

func (l logger) Step(ctx context.Context, title string, run func(context.Context) error) error {
	l.Log(title)
	return run(ctx)
}

func (l logger) Show(text string) { l.Log(text) }

func tell(t *testing.T, s *story.Story) {
	if err := story.Tell(bounded(t), logger{t}, s); err != nil {
		t.Fatal(err)
	}
}

// bounded is the test's context with a deadline.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	t.Cleanup(cancel)
	return ctx
}
