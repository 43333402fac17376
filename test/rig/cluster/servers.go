package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"floatip.io/floatip/test/rig/process"
)

// Ports on the namespace's loopback, each program's own default.
const (
	etcdClientURL  = "http://127.0.0.1:2379"
	etcdPeerURL    = "http://127.0.0.1:2380"
	controllerPort = 10257
	schedulerPort  = 10259
)

func (c *Cluster) startEtcd(ctx context.Context) error {
	c.opts.Progress.Sayf("starting etcd")
	etcd := program{name: "etcd", args: []string{
		"--name=rig",
		"--data-dir=" + c.path(etcdDir),
		"--listen-client-urls=" + etcdClientURL,
		"--advertise-client-urls=" + etcdClientURL,
		"--listen-peer-urls=" + etcdPeerURL,
		"--initial-advertise-peer-urls=" + etcdPeerURL,
		"--initial-cluster=rig=" + etcdPeerURL,
		"--unsafe-no-fsync", // the data need not survive the machine
		"--log-level=warn",
	}}
	return c.run(ctx, etcd, c.answers(etcdClientURL+"/readyz"))
}

func (c *Cluster) startAPIServer(ctx context.Context) error {
	c.opts.Progress.Sayf("starting kube-apiserver")
	if err := writeFile(c.path(auditPolicyFile), auditPolicy); err != nil {
		return err
	}
	flags, err := c.admissionFlags()
	if err != nil {
		return err
	}
	if err := c.connect(); err != nil {
		return err
	}
	ready := func(ctx context.Context) error { return c.kube.ready(ctx, "/readyz") }
	return c.run(ctx, program{name: "kube-apiserver", args: append(c.apiServerFlags(), flags...)}, ready)
}

func (c *Cluster) apiServerFlags() []string {
	return []string{
		"--etcd-servers=" + c.opts.EtcdURL,
		"--bind-address=0.0.0.0",
		"--secure-port=" + strconv.Itoa(apiServerPort),
		"--advertise-address=" + c.opts.Advertise.String(),
		"--service-cluster-ip-range=" + c.opts.ServiceCIDR.String(),
		"--client-ca-file=" + c.pki.cluster.certFile,
		"--tls-cert-file=" + c.pki.apiServer.cert,
		"--tls-private-key-file=" + c.pki.apiServer.key,
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + c.pki.serviceAccount.cert,
		"--service-account-signing-key-file=" + c.pki.serviceAccount.key,
		"--requestheader-client-ca-file=" + c.pki.frontProxy.certFile,
		"--requestheader-allowed-names=" + frontProxyName,
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + c.pki.frontProxyCall.cert,
		"--proxy-client-key-file=" + c.pki.frontProxyCall.key,
		// For kubectl logs and kubectl exec. Nobody signed the kubelets' own certificates, as kubeadm leaves it.
		"--kubelet-client-certificate=" + c.pki.kubeletCall.cert,
		"--kubelet-client-key=" + c.pki.kubeletCall.key,
		"--kubelet-preferred-address-types=InternalIP",
		// No service proxy runs, so a Service's address leads nowhere: webhooks and aggregated APIs are called at the
		// addresses of their EndpointSlices.
		"--enable-aggregator-routing=true",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction", // as kubeadm does
		"--allow-privileged=true",
		"--audit-policy-file=" + c.path(auditPolicyFile),
		"--audit-log-path=" + c.AuditLog(),
		"--profiling=false",
	}
}

// startControllers starts kube-controller-manager and kube-scheduler side by side.
func (c *Cluster) startControllers(ctx context.Context) error {
	c.opts.Progress.Sayf("starting kube-controller-manager and kube-scheduler")
	manager, err := c.clientKubeconfig("controller-manager", "system:kube-controller-manager")
	if err != nil {
		return err
	}
	scheduler, err := c.clientKubeconfig("scheduler", "system:kube-scheduler")
	if err != nil {
		return err
	}
	for _, p := range []program{
		{name: "kube-controller-manager", args: c.managerFlags(manager)},
		{name: "kube-scheduler", args: schedulerFlags(scheduler)},
	} {
		if err := c.run(ctx, p, nil); err != nil {
			return err
		}
	}
	for name, port := range map[string]int{
		"kube-controller-manager": controllerPort, "kube-scheduler": schedulerPort,
	} {
		url := fmt.Sprintf("https://127.0.0.1:%d/healthz", port)
		if err := c.process(name).WaitReady(ctx, c.opts.Progress, c.answers(url)); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) managerFlags(kubeconfig string) []string {
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(controllerPort),
		"--root-ca-file=" + c.pki.cluster.certFile,
		"--service-account-private-key-file=" + c.pki.serviceAccount.key,
		"--use-service-account-credentials=true",
		"--requestheader-client-ca-file=" + c.pki.frontProxy.certFile,
		"--allocate-node-cidrs=true",
		"--cluster-cidr=" + c.opts.PodCIDR.String(),
		"--service-cluster-ip-range=" + c.opts.ServiceCIDR.String(),
		"--leader-elect=false", // there is one, and a lease would only delay it
		// A node whose heartbeat is late on a machine of two busy cores is not gone. Kubernetes' default is 50 s.
		"--node-monitor-grace-period=3m",
		"--kube-api-qps=200",
		"--kube-api-burst=400",
		"--profiling=false",
	}
}

func schedulerFlags(kubeconfig string) []string {
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(schedulerPort),
		"--leader-elect=false",
		"--profiling=false",
	}
}

// process finds a started program by its name.
func (c *Cluster) process(name string) *process.Process {
	for _, p := range c.started {
		if p.Name == name {
			return p
		}
	}
	panic("cluster: " + name + " was not started")
}

// getter returns a function that fetches a URL inside the namespace. Certificates are not checked: the servers sign
// those of their loopback ports themselves, and nothing secret is sent.
func (c *Cluster) getter() func(ctx context.Context, url string) ([]byte, error) {
	client := &http.Client{Transport: &http.Transport{
		DialContext:       process.Dialer(c.opts.NetNS),
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives: true,
	}}
	return func(ctx context.Context, url string) ([]byte, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, err
		}
		response, err := client.Do(request)
		if err != nil {
			return nil, err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return nil, errors.New(response.Status)
		}
		return io.ReadAll(response.Body)
	}
}

// answers returns a condition that holds when a health URL inside the namespace answers 200.
func (c *Cluster) answers(url string) func(context.Context) error {
	get := c.getter()
	return func(ctx context.Context) error {
		_, err := get(ctx, url)
		return err
	}
}
