package nat

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Tables is what floatip keeps in "ip nat" and in "ip6 nat", in this order. The zero value is: nothing.
type Tables [2]Table

// families are the tables' families in the order of Tables.
var families = [2]nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}

// Table is our share of one table. What KubeVirt or others keep there is not part of it. Lists are sorted by name.
type Table struct {
	Counters []string
	Sets     []Set
	Chains   []Chain
	// Dormant: somebody has put the whole table to sleep, KubeVirt's rules included. No desired Table is.
	Dormant bool
}

// Set is a named set. Its elements are sorted.
type Set struct {
	Name     string
	Type     string // nft's name of the key type, for instance "ipv4_addr"
	Interval bool
	Elements []Element
}

// Element is one key of a set as the kernel holds it, in network byte order. An interval of a plain type is two
// elements: its first key, and the first key after it with End set. An interval of a concatenated type is one element
// with the last value of each field in Last.
type Element struct {
	Key  string // bytes
	End  bool
	Last string // bytes
}

// Chain is a chain with its rules. A chain that is only jumped to has an empty Type.
type Chain struct {
	Name     string
	Type     nftables.ChainType
	Hook     nftables.ChainHook
	Priority nftables.ChainPriority
	Policy   nftables.ChainPolicy
	Rules    []Rule
}

// Rule is one rule. Text is its nft form, for people; Read leaves it empty, since the kernel keeps only expressions.
type Rule struct {
	Text      string
	exprs     []expr.Any // empty after Read
	canonical string     // what two rules are compared by; empty before Read, see text
}

// text returns what two rules of one family are compared by. It is made when it is asked for: to rules that are not there
// at all nothing needs to be compared, and a start has no time to lose.
func (r Rule) text(id nftables.TableFamily) string {
	if r.canonical != "" {
		return r.canonical
	}
	return RuleText(id, r.exprs)
}

// Empty reports whether t holds nothing at all.
func (t Table) Empty() bool { return len(t.Counters)+len(t.Sets)+len(t.Chains) == 0 }

// Diff names the first thing in which the kernel's have differs from t, for a log line. It is empty if and only if have
// does exactly what t says. Texts of rules do not count, and neither do the figures of counters.
func (t Tables) Diff(have Tables) string {
	for i := range t {
		if d := t[i].diff(have[i], families[i]); d != "" {
			return fmt.Sprintf("table %s %s: %s", words(families[i]).ip, TableName, d)
		}
	}
	return ""
}

func (t Table) diff(have Table, id nftables.TableFamily) string {
	if have.Dormant && !t.Empty() {
		return "the table is dormant"
	}
	if !slices.Equal(t.Counters, have.Counters) {
		return fmt.Sprintf("counters: want %v, have %v", t.Counters, have.Counters)
	}
	if d := missing("set", names(t.Sets, setName), names(have.Sets, setName)); d != "" {
		return d
	}
	for i, want := range t.Sets {
		if !want.equal(have.Sets[i]) {
			return fmt.Sprintf("set %s was changed", want.Name)
		}
	}
	if d := missing("chain", names(t.Chains, chainName), names(have.Chains, chainName)); d != "" {
		return d
	}
	for i, want := range t.Chains {
		if d := want.diff(have.Chains[i], id); d != "" {
			return fmt.Sprintf("chain %s: %s", want.Name, d)
		}
	}
	return ""
}

func setName(s Set) string     { return s.Name }
func chainName(c Chain) string { return c.Name }

func names[T any](list []T, name func(T) string) (out []string) {
	for _, item := range list {
		out = append(out, name(item))
	}
	return out
}

// missing compares two sorted lists of names.
func missing(what string, want, have []string) string {
	for _, name := range want {
		if !slices.Contains(have, name) {
			return fmt.Sprintf("%s %s is missing", what, name)
		}
	}
	for _, name := range have {
		if !slices.Contains(want, name) {
			return fmt.Sprintf("%s %s is not ours to keep", what, name)
		}
	}
	return ""
}

func (s Set) equal(t Set) bool {
	return s.sameDeclaration(t) && slices.Equal(s.Elements, t.Elements)
}

func (s Set) sameDeclaration(t Set) bool {
	return s.Name == t.Name && s.Type == t.Type && s.Interval == t.Interval
}

func (c Chain) sameDeclaration(d Chain) bool {
	return c.Name == d.Name && c.Type == d.Type && c.Hook == d.Hook && c.Priority == d.Priority &&
		c.Policy == d.Policy
}

func (c Chain) diff(have Chain, id nftables.TableFamily) string {
	if !c.sameDeclaration(have) {
		return fmt.Sprintf("want %q, have %q", c.header(), have.header())
	}
	if len(c.Rules) != len(have.Rules) {
		return fmt.Sprintf("want %d rules, have %d", len(c.Rules), len(have.Rules))
	}
	for i, want := range c.Rules {
		if want.text(id) != have.Rules[i].text(id) {
			return fmt.Sprintf("rule %d was changed, want %q", i+1, want.Text)
		}
	}
	return ""
}
