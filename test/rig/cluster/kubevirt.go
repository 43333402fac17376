package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"floatip.io/floatip/test/rig/process"
)

// KubeVirtNamespace is where KubeVirt is installed.
const KubeVirtNamespace = "kubevirt"

// KubeVirtVersion is the version of the programs, and the tag of the images that virt-controller writes into pods. It
// is the one that test/kubevirt/go.mod requires.
const KubeVirtVersion = "v1.8.4"

// Service accounts of KubeVirt's programs (KubeVirt, components/serviceaccountnames.go). Its webhooks grant them what
// they refuse to anybody else, such as writing the status of an instance.
const (
	virtAPIAccount        = "kubevirt-apiserver"
	virtControllerAccount = "kubevirt-controller"
	virtHandlerAccount    = "kubevirt-handler"
)

// Ports in the control plane's namespace. As pods, both programs use 8443.
const (
	virtAPIPort        = 8443
	virtControllerPort = 8444
)

// KubeVirt is an installed KubeVirt.
type KubeVirt struct {
	cluster *Cluster
	// HandlerKubeconfig and ControllerKubeconfig are the paths of kubeconfigs for the service accounts of virt-handler
	// and virt-controller. They may write the status of instances; virt-handler's may also annotate nodes.
	HandlerKubeconfig    string
	ControllerKubeconfig string
}

// InstallKubeVirt installs KubeVirt's definitions, roles, certificates and webhooks, starts virt-api and
// virt-controller, and returns once virt-controller leads and the aggregated API is available.
func (c *Cluster) InstallKubeVirt(ctx context.Context) (*KubeVirt, error) {
	begun := time.Now()
	k := &KubeVirt{cluster: c}
	m, err := c.kubeVirtManifests(ctx)
	if err != nil {
		return nil, fmt.Errorf("generate KubeVirt's manifests: %w", err)
	}
	if err := k.install(ctx, m); err != nil {
		return nil, fmt.Errorf("install KubeVirt: %w", err)
	}
	c.opts.Progress.Sayf("KubeVirt %s is up (%s)", KubeVirtVersion, time.Since(begun).Round(100*time.Millisecond))
	return k, nil
}

func (k *KubeVirt) install(ctx context.Context, m *manifests) error {
	c := k.cluster
	c.opts.Progress.Sayf("creating KubeVirt's definitions and roles (%d objects)", m.len())
	if err := m.create(ctx, isDefinition, isNamespace); err != nil {
		return err
	}
	if err := m.established(ctx, c.opts.Progress); err != nil {
		return err
	}
	// Webhooks come last: a webhook whose server is not there yet refuses the objects created meanwhile.
	if err := m.create(ctx, not(isWebhook)); err != nil {
		return err
	}
	if err := m.writeStatus(ctx, "KubeVirt"); err != nil {
		return err
	}
	c.opts.Progress.Sayf("starting virt-api and virt-controller")
	if err := k.startPrograms(ctx, m); err != nil {
		return err
	}
	if err := m.create(ctx, isWebhook); err != nil {
		return err
	}
	return process.Wait(ctx, c.opts.Progress, "the API of virt-api", func(ctx context.Context) error {
		return c.kube.ready(ctx, "/apis/"+subresourceAPI.String())
	})
}

// startPrograms gives both programs the certificates of their secrets and tokens of their service accounts.
func (k *KubeVirt) startPrograms(ctx context.Context, m *manifests) (err error) {
	c := k.cluster
	files := map[string]pair{}
	for _, secret := range []string{
		"kubevirt-virt-api-certs", "kubevirt-virt-handler-certs", "kubevirt-controller-certs",
	} {
		if files[secret], err = m.secretFiles(secret, c.path(pkiDir)); err != nil {
			return err
		}
	}
	apiKubeconfig, err := c.ServiceAccountKubeconfig(ctx, KubeVirtNamespace, virtAPIAccount)
	if err != nil {
		return err
	}
	k.ControllerKubeconfig, err = c.ServiceAccountKubeconfig(ctx, KubeVirtNamespace, virtControllerAccount)
	if err != nil {
		return err
	}
	k.HandlerKubeconfig, err = c.ServiceAccountKubeconfig(ctx, KubeVirtNamespace, virtHandlerAccount)
	if err != nil {
		return err
	}
	virtAPI := virtAPIProgram(apiKubeconfig, files["kubevirt-virt-api-certs"], files["kubevirt-virt-handler-certs"])
	virtController := virtControllerProgram(k.ControllerKubeconfig, files["kubevirt-controller-certs"])
	if err := errors.Join(c.run(ctx, virtAPI, nil), c.run(ctx, virtController, nil)); err != nil {
		return err
	}
	return k.programsReady(ctx)
}

// virtAPIProgram gets the certificate that virt-api serves with and the one that it calls virt-handler with.
func virtAPIProgram(kubeconfig string, serving, calling pair) program {
	return program{
		name: "virt-api",
		args: []string{
			"--kubeconfig=" + kubeconfig,
			"--listen=0.0.0.0", "--port=" + strconv.Itoa(virtAPIPort),
			"--subresources-only", // as virt-operator starts it
			"--tls-cert-file=" + serving.cert, "--tls-key-file=" + serving.key,
			"--handler-cert-file=" + calling.cert, "--handler-key-file=" + calling.key,
			"-v=2",
		},
		// On SIGTERM it first sleeps for five seconds, for the sake of load balancers (KubeVirt, virt-api/api.go).
		grace: 100 * time.Millisecond,
	}
}

func virtControllerProgram(kubeconfig string, serving pair) program {
	return program{name: "virt-controller", args: []string{
		"--kubeconfig=" + kubeconfig,
		"--listen=127.0.0.1", "--port=" + strconv.Itoa(virtControllerPort),
		"--prom-cert-file=" + serving.cert, "--prom-key-file=" + serving.key,
		"--launcher-image=quay.io/kubevirt/virt-launcher:" + KubeVirtVersion,
		"--exporter-image=quay.io/kubevirt/virt-exportserver:" + KubeVirtVersion,
		// It ends itself when it cannot renew its lease in time (KubeVirt, virt-controller/watch/application.go), and
		// nothing would start it again. The default of 10 s is little on two cores that compile meanwhile.
		"--leader-elect-lease-duration=3m", "--leader-elect-renew-deadline=2m",
		"-v=2",
	}}
}

// programsReady asks what virt-operator's readiness probes ask.
func (k *KubeVirt) programsReady(ctx context.Context) error {
	c := k.cluster
	healthz := fmt.Sprintf("https://127.0.0.1:%d/apis/%s/healthz", virtAPIPort, subresourceAPI)
	if err := c.process("virt-api").WaitReady(ctx, c.opts.Progress, c.answers(healthz)); err != nil {
		return err
	}
	leader := fmt.Sprintf("https://127.0.0.1:%d/leader", virtControllerPort)
	get := c.getter()
	return c.process("virt-controller").WaitReady(ctx, c.opts.Progress, func(ctx context.Context) error {
		answer, err := get(ctx, leader)
		if err == nil && !bytes.Contains(answer, []byte(`"true"`)) {
			return errors.New("it does not lead yet")
		}
		return err
	})
}

// subresourceAPI is the aggregated API that virt-api serves and virtctl calls.
var subresourceAPI = schema.GroupVersion{Group: "subresources.kubevirt.io", Version: "v1"}

// Start starts a virtual machine by the call that `virtctl start` makes.
func (k *KubeVirt) Start(ctx context.Context, namespace, vm string) error {
	return k.put(ctx, namespace, vm, "start")
}

// Stop stops a virtual machine by the call that `virtctl stop` makes.
func (k *KubeVirt) Stop(ctx context.Context, namespace, vm string) error {
	return k.put(ctx, namespace, vm, "stop")
}

// Restart replaces the instance of a virtual machine, and so its pod, by the call that `virtctl restart` makes.
func (k *KubeVirt) Restart(ctx context.Context, namespace, vm string) error {
	return k.put(ctx, namespace, vm, "restart")
}

// Migrate has a virtual machine moved to another node by the call that `virtctl migrate` makes.
func (k *KubeVirt) Migrate(ctx context.Context, namespace, vm string) error {
	return k.put(ctx, namespace, vm, "migrate")
}

func (k *KubeVirt) put(ctx context.Context, namespace, vm, verb string) error {
	path := fmt.Sprintf("/apis/%s/namespaces/%s/virtualmachines/%s/%s", subresourceAPI, namespace, vm, verb)
	err := k.cluster.kube.Discovery().RESTClient().Put().AbsPath(path).
		SetHeader("Content-Type", "application/json").Body([]byte("{}")).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("%s virtual machine %s/%s: %w", verb, namespace, vm, err)
	}
	return nil
}

// virtAPIAddress is where the API server reaches virt-api.
func (c *Cluster) virtAPIAddress() netip.AddrPort {
	return netip.AddrPortFrom(c.opts.Advertise, virtAPIPort)
}
