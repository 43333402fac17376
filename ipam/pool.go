package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// DefaultQuarantine is how long a released address rests where the pool does not say. The neighbours on the provider
// network keep an ARP entry for minutes (base_reachable_time and gc_stale_time, Documentation/networking/ip-sysctl.rst),
// firewalls keep a connection longer.
const DefaultQuarantine = 5 * time.Minute

// PoolText is a pool as an administrator writes it.
type PoolText struct {
	Name string
	// Addresses are networks and ranges to hand out, Exclude the parts of them that are not.
	Addresses, Exclude []string
	// Networks are the provider networks around the addresses; their own addresses are never handed out.
	Networks []string
	// Gateways are never handed out.
	Gateways []string
}

// Pool is a set of addresses to hand out, and to whom. Use ParsePool for the addresses and set the other fields.
type Pool struct {
	Name string
	// Addresses that may be handed out: sorted, disjoint, without what is excluded. ParsePool sets it.
	Addresses []Range
	// Never holds what lies in the written ranges and is not handed out. ParsePool sets it.
	Never []Range

	// Gateways are never handed out by any pool, Edges, the first and last addresses of the written networks, by no younger one.
	// Both may lie outside of Addresses and Never. ParsePool sets them.
	Gateways, Edges []Range

	// Reserved are further addresses that are never handed out, such as those of the nodes.
	Reserved []netip.Addr
	// AutoAssign admits requests that name no pool.
	AutoAssign bool
	// Priority orders the pools of a request that names none: higher first, then by name.
	Priority int32
	// Selects says whether a namespace with these labels may use the pool; nil stands for every namespace.
	Selects func(namespaceLabels map[string]string) bool
	// PerNamespaceLimit is the largest number of addresses for one namespace; 0 is no limit.
	PerNamespaceLimit int
	// Quarantine is how long a released address rests. 0 stands for no rest; ParsePool sets DefaultQuarantine.
	Quarantine time.Duration
	// Drain stops handing out. What is held stays.
	Drain bool
	// Created decides overlaps: the older pool keeps the addresses, equal ones by name.
	Created time.Time
}

// ParsePool checks and combines the addresses of text. The error is a FieldErrors with everything that is wrong, field
// names as in FloatingIPPool: "addresses", "exclude", "networks", "gateways".
func ParsePool(text PoolText) (Pool, error) {
	p := parser{}
	given := p.ranges("addresses", text.Addresses, true)
	never := p.ranges("exclude", text.Exclude, false)
	edges := union(append(p.networks(text.Networks), p.never...))
	gateways := union(p.gateways(text.Gateways))
	never = slices.Concat(never, edges, gateways)
	if len(text.Addresses) == 0 {
		p.complain("addresses", -1, "", errors.New("a pool needs at least one network or range"))
	}
	addresses, blocked := union(given), union(append(never, special...))
	pool := Pool{
		Name:       text.Name,
		Addresses:  subtract(addresses, blocked),
		Gateways:   gateways,
		Edges:      edges,
		AutoAssign: true,
		Quarantine: DefaultQuarantine,
	}
	pool.Never = subtract(addresses, pool.Addresses)
	if len(p.errs) == 0 && len(pool.Addresses) == 0 {
		p.complain("addresses", -1, "", errors.New("nothing is left to hand out: every address is excluded, a gateway, or the first or last of its network"))
	}
	if len(p.errs) > 0 {
		return Pool{}, p.errs
	}
	return pool, nil
}

// parser collects what is wrong, and the addresses of networks that no host may have.
type parser struct {
	errs  FieldErrors
	never []Range
}

func (p *parser) complain(field string, index int, value string, err error) {
	p.errs = append(p.errs, FieldError{field, index, value, err})
}

func (p *parser) ranges(field string, texts []string, hosts bool) []Range {
	var ranges []Range
	for i, text := range texts {
		r, network, err := parseRange(text)
		if err != nil {
			p.complain(field, i, text, err)
			continue
		}
		if hosts && network.IsValid() {
			p.never = append(p.never, neverHosts(network)...)
		}
		ranges = append(ranges, r)
	}
	return ranges
}

func (p *parser) networks(texts []string) []Range {
	var never []Range
	seen := map[Family]bool{}
	for i, text := range texts {
		network, err := ParseNetwork(text)
		if err == nil && seen[FamilyOf(network.Addr())] {
			err = fmt.Errorf("a second %s network", FamilyOf(network.Addr()))
		}
		if err != nil {
			p.complain("networks", i, text, err)
			continue
		}
		seen[FamilyOf(network.Addr())] = true
		never = append(never, neverHosts(network)...)
	}
	return never
}

func (p *parser) gateways(texts []string) []Range {
	var never []Range
	seen := map[Family]bool{}
	for i, text := range texts {
		gateway, err := netip.ParseAddr(text)
		if err == nil && gateway.IsLinkLocalUnicast() && gateway.Is6() && gateway.Zone() == "" {
			continue // the usual IPv6 router; it cannot lie in a pool
		}
		gateway, err = ParseAddress(text)
		if err == nil && seen[FamilyOf(gateway)] {
			err = fmt.Errorf("a second %s gateway", FamilyOf(gateway))
		}
		if err != nil {
			p.complain("gateways", i, text, err)
			continue
		}
		seen[FamilyOf(gateway)] = true
		never = append(never, single(gateway))
	}
	return never
}

// share is what is left of a pool after its reserved addresses and the older pools took theirs.
type share struct {
	pool    Pool
	ranges  []Range
	overlap map[string][]Range // by the name of the older pool
}

// divide gives every address to one pool at most: of pools that overlap, the oldest. What is no host's address on the
// network of one pool is none in another: a gateway in none, the first and last address of a network in no younger one.
// What a pool excludes another may have. The answer is ordered by name.
func divide(pools []Pool) []share {
	byAge := slices.Clone(pools)
	slices.SortFunc(byAge, func(a, b Pool) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	shares := make([]share, 0, len(byAge))
	var unfit []Range
	for _, pool := range pools {
		unfit = append(unfit, pool.Gateways...)
	}
	for i, pool := range byAge {
		s := share{pool: pool, overlap: map[string][]Range{}}
		s.ranges = pool.Addresses
		for _, older := range byAge[:i] {
			rest := subtract(s.ranges, older.Addresses)
			if common := subtract(s.ranges, rest); len(common) > 0 {
				s.overlap[older.Name] = common
			}
			s.ranges = rest
		}
		reserved := slices.Clone(unfit)
		for _, a := range pool.Reserved {
			reserved = append(reserved, single(a.Unmap()))
		}
		s.ranges = subtract(s.ranges, union(reserved))
		unfit = append(unfit, pool.Edges...)
		shares = append(shares, s)
	}
	slices.SortFunc(shares, func(a, b share) int { return cmp.Compare(a.pool.Name, b.pool.Name) })
	return shares
}
