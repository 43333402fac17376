package admin

import (
	"net/netip"
	"strings"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// What one message holds at most. A line takes some 350 bytes, an event some 500.
const (
	maxLines    = 5_000
	maxEvents   = 10_000
	maxProblems = 1_000
	maxAnswer   = 16 << 20 // bytes
	maxQuestion = 4 << 10  // bytes
	maxReason   = 256      // bytes
)

// Line is an address and who has it.
type Line struct {
	Address netip.Addr    `json:"address"`
	Pool    string        `json:"pool"`
	State   string        `json:"state"`
	VM      floatip.Owner `json:"vm"`
	Since   time.Time     `json:"since"`
	// Disputed: other VMs claim it too. Missing: the cluster did not show the VM when floatip started. Superseded: it showed
	// the VM with another address.
	Disputed   bool `json:"disputed,omitempty"`
	Missing    bool `json:"missing,omitempty"`
	Superseded bool `json:"superseded,omitempty"`
}

// Lines is part of the ledger. More says that there are more after the last one.
type Lines struct {
	Lines []Line `json:"lines"`
	More  bool   `json:"more,omitempty"`
}

// Event is one line of the history.
type Event struct {
	Time    time.Time     `json:"time"`
	Action  string        `json:"action"`
	Address netip.Addr    `json:"address"`
	Pool    string        `json:"pool"`
	VM      floatip.Owner `json:"vm"`
	// User and RequestUID are those of the admission request, as in the API server's audit log.
	User       string `json:"user,omitempty"`
	RequestUID string `json:"requestUID,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

// Events is part of the history. More says that there are older ones that fit the question.
type Events struct {
	Events []Event `json:"events"`
	More   bool    `json:"more,omitempty"`
}

// Claimant is a VM that claims an address that another one holds.
type Claimant struct {
	VM floatip.Owner `json:"vm"`
	// Source is the kind of object in which it was seen.
	Source string    `json:"source"`
	Since  time.Time `json:"since"`
}

// Dispute is an address that more than one VM claims.
type Dispute struct {
	Holder    Line       `json:"holder"`
	Claimants []Claimant `json:"claimants"`
}

// Disputes is all of them, or the first ones and More.
type Disputes struct {
	Disputes []Dispute `json:"disputes"`
	More     bool      `json:"more,omitempty"`
}

// Report is what a check found.
type Report struct {
	Held     int `json:"held"`
	Released int `json:"released"`
	Events   int `json:"events"`
	// Count is how many problems there are; Problems are the first ones.
	Count    int       `json:"count"`
	Problems []Problem `json:"problems"`
}

// Problem is one thing that does not fit.
type Problem struct {
	Address string `json:"address,omitempty"`
	Text    string `json:"text"`
}

// decision is the body of a resolve or a release.
type decision struct {
	Address netip.Addr `json:"address"`
	Keep    string     `json:"keep,omitempty"`
	// StoppedOn is the node that does not answer for the address any more, by the word of whoever asks.
	StoppedOn string `json:"stoppedOn,omitempty"`
	Reason    string `json:"reason,omitempty"`
}

// failure is the body of an answer that is an error.
type failure struct {
	Error string `json:"error"`
}

func lineOf(a ipam.Allocation) Line {
	return Line{
		Address: a.Address, Pool: a.Pool, State: a.State.String(), VM: a.Owner, Since: a.Since.UTC(),
		Disputed: a.Disputed, Missing: a.Missing, Superseded: a.Superseded,
	}
}

func eventOf(e ipam.Event) Event {
	return Event{
		Time: e.Time.UTC(), Action: e.Action.String(), Address: e.Address, Pool: e.Pool, VM: e.Owner,
		User: e.Cause.User, RequestUID: e.Cause.RequestUID, Reason: e.Cause.Reason,
	}
}

func disputeOf(d ipam.Dispute) Dispute {
	out := Dispute{Holder: lineOf(d.Holder)}
	for _, c := range d.Claimants {
		out.Claimants = append(out.Claimants, Claimant{VM: c.Owner, Source: c.Source, Since: c.Since.UTC()})
	}
	return out
}

func reportOf(r ipam.Report) Report {
	out := Report{Held: r.Held, Released: r.Released, Events: r.Events, Count: len(r.Problems), Problems: []Problem{}}
	for _, p := range r.Problems[:min(len(r.Problems), maxProblems)] {
		problem := Problem{Text: p.Text}
		if p.Address.IsValid() {
			problem.Address = p.Address.String()
		}
		out.Problems = append(out.Problems, problem)
	}
	return out
}

func listOf(owners []floatip.Owner) string {
	var names []string
	for _, o := range owners {
		names = append(names, o.String()+" (UID "+o.UID+")")
	}
	return strings.Join(names, ", ")
}
