package cluster

import (
	"context"
	"errors"
)

// KubeVirtNamespace is where KubeVirt is installed.
const KubeVirtNamespace = "kubevirt"

// KubeVirt is an installed KubeVirt: its API, and kubeconfigs of the service accounts that the parts on a node use.
type KubeVirt struct {
	cluster *Cluster
	// HandlerKubeconfig is virt-handler's. It may write the status of instances and annotate nodes.
	HandlerKubeconfig string
	// ControllerKubeconfig is virt-controller's.
	ControllerKubeconfig string
}

// InstallKubeVirt installs KubeVirt's definitions, roles, certificates and webhooks, starts virt-api and
// virt-controller, and returns once their APIs answer.
func (c *Cluster) InstallKubeVirt(ctx context.Context) (*KubeVirt, error) {
	return nil, errors.ErrUnsupported
}

// Start starts a virtual machine by the call that virtctl makes, the subresource "start".
func (k *KubeVirt) Start(ctx context.Context, namespace, vm string) error {
	return k.subresource(ctx, namespace, vm, "start")
}

// Stop stops a virtual machine as virtctl does.
func (k *KubeVirt) Stop(ctx context.Context, namespace, vm string) error {
	return k.subresource(ctx, namespace, vm, "stop")
}

// Restart restarts a virtual machine as virtctl does: a new instance, in a new pod.
func (k *KubeVirt) Restart(ctx context.Context, namespace, vm string) error {
	return k.subresource(ctx, namespace, vm, "restart")
}

func (k *KubeVirt) subresource(ctx context.Context, namespace, vm, verb string) error {
	return errors.ErrUnsupported
}
