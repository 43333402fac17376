package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"floatip.io/floatip/test/rig"
	"floatip.io/floatip/test/story"
)

// teller prints the demo: numbered steps, what they wait for, what they show, and how long they took.
type teller struct {
	mu    sync.Mutex // guards out
	out   io.Writer
	begun time.Time
	steps int
	at    string // the step that runs or ran last
}

func newTeller(out io.Writer) *teller { return &teller{out: out, begun: time.Now()} }

func (t *teller) say(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, format+"\n", args...)
}

// progress prints what a step waits for.
func (t *teller) progress(line string) { t.say("    … %s", line) }

// Show prints something that was seen, indented.
func (t *teller) Show(text string) {
	t.say("    %s", strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n    "))
}

func (t *teller) elapsed() time.Duration { return time.Since(t.begun).Round(100 * time.Millisecond) }

// Step runs one step of the demo and says how long it took. An error names the step.
func (t *teller) Step(ctx context.Context, title string, f func(context.Context) error) error {
	t.steps++
	t.at = fmt.Sprintf("step %d, %s", t.steps, title)
	t.say("\n[%2d] %s", t.steps, title)
	begun := time.Now()
	if err := f(ctx); err != nil {
		return fmt.Errorf("%s: %w", t.at, err)
	}
	t.say("    ok (%s)", time.Since(begun).Round(10*time.Millisecond))
	return nil
}

func (t *teller) failed(err error) {
	t.say("\ndemo: FAILED after %s\n%v", t.elapsed(), err)
}

// saveLogs keeps the logs of a rig that is about to be removed and says where they are.
func (t *teller) saveLogs(r *rig.Rig) {
	dir, err := story.SaveLogs(r)
	if err != nil {
		t.say("    not all logs could be saved: %v", err)
	}
	t.say("    the logs of all components are in %s", dir)
}

// lookAround says how to use a rig that stays up.
func (t *teller) lookAround(r *rig.Rig) {
	node := r.LAN.Nodes[0]
	t.say(`
The rig stays up until `+"`make demo-down`"+`. To look around:
    alias k='nsenter --net=%s %s --kubeconfig %s'
    k get vm,vmi,pods -A -o wide ; k get floatingips,floatingippools
    k -n %s describe vm %s
    nsenter --net=%s ping %s                     # from the provider LAN
    nsenter --net=%s ip route show table all     # a node; the others likewise, see ls /run/netns
    ls %s                                        # logs, kubelet folders, pod namespaces`,
		node.Namespace, r.Kubectl(), r.Cluster.Kubeconfig(), story.Namespace, story.VMName,
		r.LAN.ProviderHost.Namespace, story.Floating, node.Namespace, r.Dir)
}
