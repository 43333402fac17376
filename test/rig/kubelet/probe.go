package kubelet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// probeKind is one of the three probes of a container.
type probeKind string

const (
	startupProbe   probeKind = "startup"
	readinessProbe probeKind = "readiness"
	livenessProbe  probeKind = "liveness"
)

// tally counts results of one probe. Its zero value is that of a fresh container.
type tally struct {
	row    int32 // length of the present row of equal results
	passed bool  // of that row
}

// count adds a result and says whether it settles the probe, that is, reaches the threshold.
func (t *tally) count(passed bool, p *corev1.Probe) (settled bool) {
	if t.row == 0 || t.passed != passed {
		t.row, t.passed = 0, passed
	}
	t.row++
	threshold := orDefault(p.FailureThreshold, 3)
	if passed {
		threshold = orDefault(p.SuccessThreshold, 1)
	}
	return t.row >= threshold
}

func orDefault(value, otherwise int32) int32 {
	if value == 0 {
		return otherwise
	}
	return value
}

// prober runs the probes of one run of one container until its context ends.
type prober struct {
	address string // of the pod
	exec    func(ctx context.Context, command []string) error
	// report hears each settled result; detail says why a probe failed.
	report func(kind probeKind, passed bool, detail error)
}

// run runs the startup probe to its end, then the others.
func (p prober) run(ctx context.Context, c *corev1.Container) {
	if c.StartupProbe != nil {
		passed := false
		p.loop(ctx, c, c.StartupProbe, startupProbe, func(ok bool) bool { passed = ok; return true })
		if !passed {
			return
		}
	}
	if c.LivenessProbe != nil {
		go p.loop(ctx, c, c.LivenessProbe, livenessProbe, func(ok bool) bool { return !ok })
	}
	if c.ReadinessProbe != nil {
		p.loop(ctx, c, c.ReadinessProbe, readinessProbe, func(bool) bool { return false })
	}
}

// loop runs one probe until a settled result for which enough returns true.
func (p prober) loop(
	ctx context.Context, c *corev1.Container, probe *corev1.Probe, kind probeKind, enough func(passed bool) bool,
) {
	var results tally
	period := time.Duration(orDefault(probe.PeriodSeconds, 10)) * time.Second
	timer := time.NewTimer(time.Duration(probe.InitialDelaySeconds) * time.Second)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := p.once(ctx, c, probe)
		if ctx.Err() != nil {
			return
		}
		if results.count(err == nil, probe) {
			p.report(kind, err == nil, err)
			if enough(err == nil) {
				return
			}
		}
		timer.Reset(period)
	}
}

// once runs the probe one time.
func (p prober) once(ctx context.Context, c *corev1.Container, probe *corev1.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(orDefault(probe.TimeoutSeconds, 1))*time.Second)
	defer cancel()
	switch {
	case probe.Exec != nil:
		return p.exec(ctx, probe.Exec.Command)
	case probe.HTTPGet != nil:
		return p.get(ctx, c, probe.HTTPGet)
	case probe.TCPSocket != nil:
		address, err := p.endpoint(c, probe.TCPSocket.Host, probe.TCPSocket.Port)
		if err != nil {
			return err
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	return errors.New("a kind of probe that the rig does not have")
}

// get passes for every code from 200 to 399 and does not verify certificates (Kubernetes, "Configure Liveness,
// Readiness and Startup Probes").
func (p prober) get(ctx context.Context, c *corev1.Container, action *corev1.HTTPGetAction) error {
	address, err := p.endpoint(c, action.Host, action.Port)
	if err != nil {
		return err
	}
	scheme := "http"
	if action.Scheme == corev1.URISchemeHTTPS {
		scheme = "https"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address+action.Path, nil)
	if err != nil {
		return err
	}
	for _, h := range action.HTTPHeaders {
		request.Header.Add(h.Name, h.Value)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode < 200 || response.StatusCode >= 400 {
		return fmt.Errorf("GET %s: %s", request.URL, response.Status)
	}
	return nil
}

func (p prober) endpoint(c *corev1.Container, host string, port intstr.IntOrString) (string, error) {
	if host == "" {
		host = p.address
	}
	if port.Type == intstr.Int {
		return net.JoinHostPort(host, strconv.Itoa(port.IntValue())), nil
	}
	for _, named := range c.Ports {
		if named.Name == port.StrVal {
			return net.JoinHostPort(host, strconv.Itoa(int(named.ContainerPort))), nil
		}
	}
	return "", fmt.Errorf("the container has no port named %q", port.StrVal)
}
