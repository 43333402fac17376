package controller

import (
	"github.com/prometheus/client_golang/prometheus"

	"floatip.io/floatip/ipam"
)

// Names of the metrics of the ledger.
const (
	MetricBound         = "floatip_addresses_bound_total"
	MetricReleased      = "floatip_addresses_released_total"
	MetricExpired       = "floatip_promises_expired_total"
	MetricPoolCapacity  = "floatip_pool_capacity_addresses"
	MetricPoolAddresses = "floatip_pool_addresses"
	MetricDisputed      = "floatip_disputed_addresses"
	MetricConflicts     = "floatip_address_conflicts_total"
)

// Metrics counts what the controllers do, and shows the ledger's figures when they are read.
type Metrics struct {
	boundTotal, releasedTotal, expiredTotal, conflictsTotal *prometheus.CounterVec
}

// NewMetrics registers the metrics of the controllers and of ledger.
func NewMetrics(registry prometheus.Registerer, ledger *ipam.Ledger) *Metrics {
	counter := func(name, help string, more ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"pool"}, more...))
		registry.MustRegister(c)
		return c
	}
	registry.MustRegister(figures{ledger})
	return &Metrics{
		boundTotal:    counter(MetricBound, "Addresses whose VM was seen stored, by pool."),
		releasedTotal: counter(MetricReleased, "Addresses that were released because VM, VMI and pods were gone, by pool."),
		expiredTotal:  counter(MetricExpired, "Addresses that were promised to a VM which was never stored, by pool."),
		conflictsTotal: counter(MetricConflicts, "Addresses that a host outside of the cluster has or claims, by pool and "+
			"outcome: the VM got another one (replaced), waits for it (waits), or defends it (contested).", "outcome"),
	}
}

func (m *Metrics) bound(pool string)    { m.boundTotal.WithLabelValues(pool).Inc() }
func (m *Metrics) released(pool string) { m.releasedTotal.WithLabelValues(pool).Inc() }
func (m *Metrics) conflict(pool, outcome string) {
	m.conflictsTotal.WithLabelValues(pool, outcome).Inc()
}
func (m *Metrics) expired(pool string) { m.expiredTotal.WithLabelValues(pool).Inc() }

var (
	capacityDesc = prometheus.NewDesc(MetricPoolCapacity,
		"Addresses that a pool can hand out, by pool and family.", []string{"pool", "family"}, nil)
	addressesDesc = prometheus.NewDesc(MetricPoolAddresses,
		"Addresses of a pool by state: used (pending ones included), pending, quarantined.", []string{"pool", "family", "state"}, nil)
	disputedDesc = prometheus.NewDesc(MetricDisputed,
		"Addresses that more than one VM claims.", nil, nil)
)

// figures reads the ledger whenever metrics are collected.
type figures struct{ ledger *ipam.Ledger }

// Describe implements prometheus.Collector.
func (figures) Describe(ch chan<- *prometheus.Desc) {
	ch <- capacityDesc
	ch <- addressesDesc
	ch <- disputedDesc
}

// Collect implements prometheus.Collector.
func (f figures) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for _, pool := range f.ledger.Pools() {
		for family, count := range map[ipam.Family]ipam.Count{ipam.IPv4: pool.IPv4, ipam.IPv6: pool.IPv6} {
			capacity, _ := count.Capacity.Float64()
			gauge(capacityDesc, capacity, pool.Pool.Name, family.String())
			gauge(addressesDesc, float64(count.Used), pool.Pool.Name, family.String(), "used")
			gauge(addressesDesc, float64(count.Pending), pool.Pool.Name, family.String(), "pending")
			gauge(addressesDesc, float64(count.Quarantined), pool.Pool.Name, family.String(), "quarantined")
		}
	}
	gauge(disputedDesc, float64(len(f.ledger.Disputes())))
}
