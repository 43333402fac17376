package admission

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
)

// auditEvent is what the tests read of an event of the API server's audit log (audit.k8s.io/v1).
type auditEvent struct {
	Verb           string
	User           struct{ Username string }
	ObjectRef      *struct{ Resource, Namespace, Name, Subresource string }
	Annotations    map[string]string
	ResponseStatus struct{ Code int }
}

type auditEvents []auditEvent

// audit waits until the API server's audit log has requests of that verb for a VM of the tenant, and returns them.
func (n *tenant) audit(ctx context.Context, vm, verb string) (found auditEvents) {
	n.t.Helper()
	n.wait("the audit log", func(context.Context) (err error) {
		found, err = n.world.auditOf(n.ns, vm, verb)
		if err == nil && len(found) == 0 {
			err = errors.New("no such event yet")
		}
		return err
	})
	return found
}

func (w *world) auditOf(namespace, name, verb string) (found auditEvents, err error) {
	log, err := os.Open(w.cluster.AuditLog())
	if err != nil {
		return nil, err
	}
	defer log.Close()
	lines := bufio.NewReader(log)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return found, nil // the rest is being written
		}
		if !strings.Contains(line, `"`+namespace+`"`) {
			continue
		}
		var event auditEvent
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			return nil, err
		}
		ref := event.ObjectRef
		if ref != nil && ref.Resource == "virtualmachines" && ref.Subresource == "" && ref.Namespace == namespace && ref.Name == name && event.Verb == verb {
			found = append(found, event)
		}
	}
}

// annotation returns what a webhook left under a key in the first event that has it.
func (all auditEvents) annotation(key string) string {
	for _, event := range all {
		if value, ok := event.Annotations[key]; ok {
			return value
		}
	}
	return ""
}

// rounds returns in which round of mutating admission a webhook was called last: 0 or 1.
func (all auditEvents) rounds(webhook string) (last int) {
	for _, event := range all {
		for key, value := range event.Annotations {
			if strings.HasPrefix(key, "mutation.webhook.admission.k8s.io/round_1_") && strings.Contains(value, `"webhook":"`+webhook+`"`) {
				last = 1
			}
		}
	}
	return last
}
