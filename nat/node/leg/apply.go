package leg

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
)

// Report says what an Apply has changed.
type Report struct {
	// Changes has one line per change. It is empty when the kernel held all before.
	Changes []string
	// Withdrawn are the addresses that had a route before and have none now.
	Withdrawn []netip.Addr
	// Raised: the link in the pod was set up. AwaitPods waits for it.
	Raised bool
}

func (r *Report) changed(format string, args ...any) {
	r.Changes = append(r.Changes, fmt.Sprintf(format, args...))
}

// Apply is ApplyTo a node of which nothing is known.
func (n *Node) Apply(c Config) (Report, error) {
	return n.ApplyTo(Holding{outdated: true}, c)
}

// ApplyTo makes the kernel of the node hold what c says, and nothing else of ours. Legs that are not plugged (see Plug)
// are left out until they are. Connection tracking forgets addresses that are withdrawn.
//
// h is what Holding has just returned; Plug alone may have changed the node since. To read all of it anew would take longer than
// what is left to do for a new address.
//
// What is there already is not touched, so a second ApplyTo changes nothing and an agent that starts anew interrupts
// nothing. The order is that of a safe withdrawal, and of make before break:
//
//	stop answering → send on what comes late → routes of addresses that left → all that is new → old rules and
//	ways back → connection tracking → old neighbours → old legs
//
// After an error the rest is still tried where it does not depend on what failed; the errors are joined.
func (n *Node) ApplyTo(h Holding, c Config) (Report, error) {
	var r Report
	if err := c.Validate(); err != nil {
		return r, err
	}
	if h.outdated {
		var err error
		if h, err = n.Holding(); err != nil {
			return r, err
		}
	}
	have := h.state
	want, err := desired(c, n.surroundings(have))
	if err != nil {
		return r, err
	}
	if have.sysctls, err = n.sysctls.read(sortedKeys(want.sysctls)); err != nil {
		return r, fmt.Errorf("read settings: %w", err)
	}
	a := application{node: n, want: want, have: have, report: &r}
	err = errors.Join(a.stopAnswering(), a.sendOn(), a.removeAddressRoutes(), a.add(), a.remove())
	if v6 := n.checkForwarding6(want); v6 != nil {
		err = errors.Join(err, v6)
	}
	return r, err
}

func (n *Node) surroundings(have state) surroundings {
	present := map[string]bool{}
	for name := range have.ports {
		present[name] = true
	}
	_, err := os.Stat(filepath.Join(n.sysctls.dir, "ipv6/conf/all/force_forwarding"))
	return surroundings{backTables: have.backTables(), present: present, guards: n.guards.again(), forceForwarding6: err == nil}
}

// checkForwarding6 does not switch forwarding on for all interfaces: that would make the node ignore the routers it has
// its own routes from (accept_ra, Documentation/networking/ip-sysctl.rst).
func (n *Node) checkForwarding6(want state) error {
	if _, v6 := want.rules[firstRule6(want)]; !v6 {
		return nil
	}
	values, err := n.sysctls.read([]string{"ipv6/conf/all/forwarding", "ipv6/conf/all/force_forwarding"})
	if err != nil {
		return err
	}
	if _, has := values["ipv6/conf/all/forwarding"]; !has {
		return ErrNoIPv6
	}
	if _, forced := values["ipv6/conf/all/force_forwarding"]; !forced && values["ipv6/conf/all/forwarding"] == "0" {
		return ErrNoForwarding6
	}
	return nil
}

func firstRule6(s state) rule {
	for r := range s.rules {
		if r.V6 {
			return r
		}
	}
	return rule{}
}

// application is one ApplyTo on its way.
type application struct {
	node       *Node
	want, have state
	report     *Report
}

func (a application) stopAnswering() error {
	var errs []error
	for _, p := range diff(a.want.proxies, a.have.proxies).Remove {
		errs = append(errs, a.proxy(p, false))
	}
	return errors.Join(errs...)
}

// sendOn comes before the routes of addresses go, so that no packet for one finds neither.
func (a application) sendOn() error {
	var errs []error
	for _, r := range diff(a.want.rules, a.have.rules).Put {
		if r.Priority == ruleLate {
			errs = append(errs, a.rule(r, true))
			a.have.rules[r] = struct{}{}
		}
	}
	return errors.Join(errs...)
}

func (a application) removeAddressRoutes() error {
	var errs []error
	for _, k := range diff(a.want.routes, a.have.routes).Remove {
		if a.hasLeft(k) {
			errs = append(errs, a.route(k, false))
		}
	}
	return errors.Join(errs...)
}

// hasLeft reports whether k is the route of an address that has none any more. One that has it in another table from now
// on keeps both for a moment, and no packet finds neither.
func (a application) hasLeft(k routeKey) bool {
	_, stays := a.want.addresses()[k.To.Addr()]
	return k.ofAddress(a.have.routes[k]) && !stays
}

// add makes all that is new. The proxies come last: nobody is told of an address that has no way.
func (a application) add() error {
	errs := []error{a.addSysctls()}
	// Without its guard a port gets no way.
	if err := a.setGuards(diff(a.want.guards, a.have.guards).Put); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, name := range diff(a.want.ports, a.have.ports).Put {
		errs = append(errs, a.setPort(name))
	}
	for _, n := range diff(a.want.neighbours, a.have.neighbours).Put {
		errs = append(errs, a.setNeighbour(n))
	}
	routes := a.backFirst(diff(a.want.routes, a.have.routes).Put)
	errs = append(errs, a.awaitPorts(routes))
	for _, k := range routes {
		errs = append(errs, a.route(k, true))
	}
	for _, r := range backLast(diff(a.want.rules, a.have.rules).Put) {
		errs = append(errs, a.rule(r, true))
	}
	for _, p := range diff(a.want.proxies, a.have.proxies).Put {
		errs = append(errs, a.proxy(p, true))
	}
	return errors.Join(errs...)
}

// awaitPorts waits until the legs of new routes are usable, so that the first packet to an address is not lost.
func (a application) awaitPorts(routes []routeKey) error {
	var ports []string
	for _, k := range routes {
		if dev := a.want.routes[k].Dev; isPort(dev) {
			ports = append(ports, dev)
		}
	}
	slices.Sort(ports)
	ports = slices.Compact(ports)
	return awaitUsable(len(ports), func(n int) (bool, error) { return isUsable(a.node.netlink, ports[n]) })
}

// backFirst puts the throw routes, then the rest of the ways back, before the routes of addresses.
func (a application) backFirst(keys []routeKey) []routeKey {
	order := func(k routeKey) int {
		if k.ofAddress(a.want.routes[k]) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(keys, func(x, y routeKey) int { return order(x) - order(y) })
	return keys
}

// backLast puts the rules of ways back behind those that lead everybody else past them, and these behind the one that
// they lead to: a rule without its destination is none.
func backLast(rules []rule) []rule {
	order := func(r rule) int { return slices.Index([]int{ruleActive, ruleOthers, ruleBack}, r.Priority) }
	slices.SortStableFunc(rules, func(x, y rule) int { return order(x) - order(y) })
	return rules
}

func (a application) remove() error {
	var errs []error
	for _, r := range slices.Backward(backLast(diff(a.want.rules, a.have.rules).Remove)) {
		errs = append(errs, a.rule(r, false))
	}
	for _, k := range diff(a.want.routes, a.have.routes).Remove {
		if !a.hasLeft(k) {
			errs = append(errs, a.route(k, false))
		}
	}
	gone := diff(a.want.addresses(), a.have.addresses()).Remove
	a.report.Withdrawn = gone
	errs = append(errs, forget(a.node.netlink, gone))
	for _, n := range diff(a.want.neighbours, a.have.neighbours).Remove {
		errs = append(errs, a.removeNeighbour(n))
	}
	for _, name := range diff(a.want.ports, a.have.ports).Remove {
		errs = append(errs, a.removeLink(name))
	}
	errs = append(errs, a.removeGuards(diff(a.want.guards, a.have.guards).Remove), a.removeOlder())
	return errors.Join(errs...)
}

func (a application) addSysctls() error {
	var errs []error
	for _, path := range diff(a.want.sysctls, a.have.sysctls).Put {
		if err := a.node.sysctls.write(path, a.want.sysctls[path]); err != nil {
			errs = append(errs, fmt.Errorf("set %s to %s: %w", path, a.want.sysctls[path], err))
			continue
		}
		a.report.changed("sysctl %s=%s", path, a.want.sysctls[path])
	}
	return errors.Join(errs...)
}
