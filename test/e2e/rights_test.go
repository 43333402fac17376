package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip/test/story"
)

// systemNamespace is where the manifests install floatip.
const systemNamespace = "floatip-system"

// right is a verb on a resource, as RBAC grants it and the audit log notes its use.
type right struct{ verb, group, resource string }

func (r right) String() string {
	if r.group == "" {
		return r.verb + " " + r.resource
	}
	return r.verb + " " + r.resource + "." + r.group
}

// unused are the rights that no test here makes use of, and what they are for.
var unused = map[string]map[right]string{
	"floatip-webhook": {
		{"patch", "floatip.io", "floatingips"}: "an address that another pool has taken over, by a split",
	},
	"floatip-agent": {},
}

// atTimes are the rights that these tests use or not, as it happens.
var atTimes = map[string]map[right]string{
	"floatip-webhook": {
		{"get", "", "nodes"}:                     "a VM that is gone and for whose address a node still answers at that moment",
		{"get", "", "namespaces"}:                "a VM in a namespace that was made a moment ago and is not in the cache yet",
		{"get", "floatip.io", "floatingippools"}: "a pod of a pool that was made a moment ago and is not in the cache yet",
	},
}

// rightsUsed compares what both programs asked of the API server in all that went before with what they may ask. It
// comes last: whatever is granted is used by then, or has its reason above.
func rightsUsed(t *testing.T, s *story.Story) {
	for program, reasons := range unused {
		granted := grantedTo(t, s, program)
		used := usedBy(t, s, program)
		for r := range atTimes[program] {
			if !granted[r] {
				t.Errorf("%s is not granted %s any more: the reason is outdated", program, r)
			}
			delete(granted, r)
			delete(used, r)
		}
		if len(used) < 8 {
			t.Errorf("%s used %d rights: the audit log does not show it all", program, len(used))
		}
		for r := range used {
			if !granted[r] {
				t.Errorf("%s used %s, which it is not granted", program, r)
			}
		}
		for r := range granted {
			// Where the API server does not stream its lists, a watch begins with a list (client-go tools/cache/reflector.go).
			streamed := r.verb == "list" && used[right{"watch", r.group, r.resource}]
			if reason := reasons[r]; !used[r] && !streamed && reason == "" {
				t.Errorf("%s is granted %s and does not use it", program, r)
			} else if used[r] && reason != "" {
				t.Errorf("%s uses %s: the reason why not is outdated", program, r)
			}
		}
		for r := range reasons {
			if !granted[r] {
				t.Errorf("%s is not granted %s any more: the reason is outdated", program, r)
			}
		}
		names := slices.Sorted(maps.Values(texts(used)))
		t.Logf("%s used %d of %d rights: %s", program, len(used), len(granted), strings.Join(names, ", "))
	}
}

func texts(set map[right]bool) map[right]string {
	all := map[right]string{}
	for r := range set {
		all[r] = r.String()
	}
	return all
}

// grantedTo reads the rules of the roles that bear the program's name.
func grantedTo(t *testing.T, s *story.Story, program string) map[right]bool {
	t.Helper()
	ctx := bounded(t)
	var rules []rbacv1.PolicyRule
	for _, name := range []string{program, program + "-certs"} {
		var cluster rbacv1.ClusterRole
		var local rbacv1.Role
		err := errors.Join(
			client.IgnoreNotFound(s.Client.Get(ctx, client.ObjectKey{Name: name}, &cluster)),
			client.IgnoreNotFound(s.Client.Get(ctx, client.ObjectKey{Namespace: systemNamespace, Name: name}, &local)))
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, slices.Concat(cluster.Rules, local.Rules)...)
	}
	all := map[right]bool{}
	for _, rule := range rules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					all[right{verb, group, resource}] = true
				}
			}
		}
	}
	return all
}

// auditEvent is the part of an audit.k8s.io/v1 Event that is read here.
type auditEvent struct {
	Verb string `json:"verb"`
	User struct {
		Username string `json:"username"`
	} `json:"user"`
	ObjectRef struct {
		APIGroup    string `json:"apiGroup"`
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
		Name        string `json:"name"`
	} `json:"objectRef"`
	RequestURI  string            `json:"requestURI"`
	Annotations map[string]string `json:"annotations"`
}

// usedBy returns what a program asked of the API server, and fails the test if anything was refused for want of a right.
func usedBy(t *testing.T, s *story.Story, program string) map[right]bool {
	t.Helper()
	log, err := os.Open(s.Rig.Cluster.AuditLog())
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	user := fmt.Sprintf("system:serviceaccount:%s:%s", systemNamespace, program)
	used := map[right]bool{}
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 16<<20) // a line has the whole object that was written
	for lines.Scan() {
		var e auditEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%v: %s", err, lines.Text())
		}
		if e.User.Username != user || e.ObjectRef.Resource == "" {
			continue
		}
		if e.Annotations["authorization.k8s.io/decision"] != "allow" {
			t.Errorf("%s was refused: %s %s", program, e.Verb, e.RequestURI)
		}
		resource := e.ObjectRef.Resource
		if e.ObjectRef.Subresource != "" {
			resource += "/" + e.ObjectRef.Subresource
		}
		used[right{e.Verb, e.ObjectRef.APIGroup, resource}] = true
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return used
}
