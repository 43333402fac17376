package webhook

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Names of the metrics of admission.
const (
	MetricAdmissionDuration = "floatip_admission_duration_seconds"
)

// Metrics counts and times what the hooks decide.
type Metrics struct {
	admission *prometheus.HistogramVec
}

// NewMetrics registers the metrics of admission.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := &Metrics{admission: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: MetricAdmissionDuration,
		Help: "Time from a decoded admission request to its decision, the ledger's fsync included, by handler and decision.",
		// From a hook that only looks (tens of microseconds) to the time limit of the webhook configurations.
		Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5, 10},
	}, []string{"handler", "decision"})}
	registry.MustRegister(m.admission)
	return m
}

func (m *Metrics) observe(handler string, action Action, took time.Duration) {
	m.admission.WithLabelValues(handler, string(action)).Observe(took.Seconds())
}
