package virthandler

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	v1 "kubevirt.io/api/core/v1"
	"kubevirt.io/client-go/kubecli"

	"floatip.io/floatip/test/kubevirt/virthandler/launcher"
	neterrors "kubevirt.io/kubevirt/pkg/network/errors"
	netsetup "kubevirt.io/kubevirt/pkg/network/setup"
	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

// Config says which node a Handler works for, and with what.
type Config struct {
	Node string
	// KubeletDir is the node's kubelet directory. Beside what kubelet has there, pods/<uid>/netns may lead to the network
	// namespace of a pod.
	KubeletDir string
	// RunDir holds one folder for each instance (Dir) and KubeVirt's caches.
	RunDir string
	// GuestKernel and GuestInitrd are the rig's guest.
	GuestKernel, GuestInitrd string
	// Nameserver is the cluster's DNS server, which guests are told by DHCP.
	Nameserver string
}

// Handler is virt-handler's stand-in for one node.
type Handler struct {
	Config
	client    kubecli.KubevirtClient
	recorder  record.EventRecorder
	instances cache.Store
	queue     workqueue.TypedRateLimitingInterface[string]
	machines  *machines
	network   *Network
	netStat   *netsetup.NetStat
}

// New returns a handler that works with the given client; it does nothing until Run.
func New(config Config, client kubecli.KubevirtClient) *Handler {
	h := &Handler{
		Config: config,
		client: client,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](50*time.Millisecond, 5*time.Second)),
		network: NewNetwork(filepath.Join(config.RunDir, "kubevirt-private")),
	}
	h.netStat = netsetup.NewNetStateWithCustomFactory(h.network)
	h.machines = newMachines(config.RunDir, h.queue.Add)
	return h
}

// workers is how many instances are dealt with at once.
const workers = 4

// Run works until ctx is done, and returns nil then. Machines go on; a later Run finds them.
func (h *Handler) Run(ctx context.Context) error {
	events := record.NewBroadcaster()
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: h.client.CoreV1().Events("")})
	h.recorder = events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "virt-handler", Host: h.Node})

	if err := h.machines.restore(ctx); err != nil {
		return err
	}
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(h.client.RestClient(), "virtualmachineinstances", "", fields.Everything()),
		ObjectType:    &v1.VirtualMachineInstance{},
		Handler:       h.enqueueAll(),
	})
	h.instances = store
	var running sync.WaitGroup
	running.Go(func() { informer.RunWithContext(ctx) })
	running.Go(func() { h.heartbeat(ctx) })
	if cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		for range workers {
			running.Go(func() { h.work(ctx) })
		}
	}
	<-ctx.Done()
	h.queue.ShutDown()
	running.Wait()
	return nil
}

func (h *Handler) enqueueAll() cache.ResourceEventHandler {
	enqueue := func(object any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object); err == nil {
			h.queue.Add(key)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: enqueue, DeleteFunc: enqueue, UpdateFunc: func(_, now any) { enqueue(now) },
	}
}

func (h *Handler) work(ctx context.Context) {
	for {
		key, stop := h.queue.Get()
		if stop {
			return
		}
		err := h.sync(ctx, key)
		switch {
		case err == nil:
			h.queue.Forget(key)
		case ctx.Err() != nil:
		default:
			if !apierrors.IsConflict(err) {
				log.Printf("%s: %v", key, err)
			}
			h.queue.AddRateLimited(key)
		}
		h.queue.Done(key)
	}
}

// sync brings one instance and its machine a step further.
func (h *Handler) sync(ctx context.Context, key string) error {
	object, exists, err := h.instances.GetByKey(key)
	if err != nil {
		return err
	}
	var vmi *v1.VirtualMachineInstance
	if exists {
		vmi = object.(*v1.VirtualMachineInstance).DeepCopy()
	}
	for _, m := range h.machines.of(key) {
		if vmi == nil || vmi.UID != m.vmi.UID {
			if err := h.retire(ctx, m); err != nil {
				return err
			}
		}
	}
	if vmi == nil {
		return nil
	}
	_, domain, known := h.machines.get(vmi.UID)
	if !known {
		return nil // its launcher will tell soon, and wake us
	}
	switch roleOf(vmi, h.Node) {
	case roleOwner:
		return h.syncOwned(ctx, vmi, domain)
	case roleSource:
		return h.syncSource(ctx, vmi, domain)
	case roleTarget:
		return h.syncTarget(ctx, vmi, domain)
	}
	if migrated(domain) || vmi.IsFinal() || vmi.DeletionTimestamp != nil {
		return h.act(ctx, vmi, domain)
	}
	return nil
}

// retire ends a machine whose instance the API no longer has.
func (h *Handler) retire(ctx context.Context, m *machine) error {
	_, domain, known := h.machines.get(m.vmi.UID)
	if !known {
		return nil
	}
	return h.do(ctx, plan(nil, domain, h.Node, time.Now()), m.vmi)
}

// act does what plan says, whoever owns the instance.
func (h *Handler) act(ctx context.Context, vmi *v1.VirtualMachineInstance, domain *api.Domain) error {
	return h.do(ctx, plan(vmi, domain, h.Node, time.Now()), vmi)
}

// syncOwned acts and then tells the instance's status.
func (h *Handler) syncOwned(ctx context.Context, vmi *v1.VirtualMachineInstance, domain *api.Domain) error {
	if vmi.IsFinal() {
		return h.act(ctx, vmi, domain)
	}
	before := vmi.DeepCopy()
	syncErr := h.act(ctx, vmi, domain)
	if syncErr != nil && ctx.Err() == nil {
		h.recorder.Event(vmi, corev1.EventTypeWarning, v1.SyncFailed.String(), syncErr.Error())
	}
	if err := h.describe(vmi, domain, syncErr); err != nil {
		return errors.Join(syncErr, err)
	}
	return errors.Join(syncErr, h.update(ctx, before, vmi))
}

// update writes the instance if it differs, and tells a change of phase.
func (h *Handler) update(ctx context.Context, before, vmi *v1.VirtualMachineInstance) error {
	if equality.Semantic.DeepEqual(before, vmi) {
		return nil
	}
	if _, err := h.client.VirtualMachineInstance(vmi.Namespace).Update(ctx, vmi, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("write the instance's status: %w", err)
	}
	if before.Status.Phase != vmi.Status.Phase {
		h.tellPhase(vmi)
	}
	return nil
}

// do carries a step out.
func (h *Handler) do(ctx context.Context, next step, vmi *v1.VirtualMachineInstance) error {
	m, _, _ := h.machines.get(vmi.UID)
	if next != stepNone {
		log.Printf("%s/%s: %s", vmi.Namespace, vmi.Name, next)
	}
	switch next {
	case stepStart:
		return h.start(ctx, vmi, netsetup.FilterNetsForVMStartup(vmi), false)
	case stepShutdown:
		return h.shutdown(ctx, vmi, m)
	case stepDestroy:
		h.recorder.Event(vmi, corev1.EventTypeNormal, v1.Deleted.String(), "VirtualMachineInstance stopping")
		return m.client.Destroy(ctx)
	case stepRemove:
		h.netStat.Teardown(vmi)
		return errors.Join(h.network.Forget(vmi), h.machines.remove(ctx, m))
	}
	return nil
}

// start does what virt-handler does for a pod that waits for its machine: network first, then the launcher.
func (h *Handler) start(ctx context.Context, vmi *v1.VirtualMachineInstance, networks []v1.Network, incoming bool) error {
	podDir, pod, err := h.findPod(vmi)
	if err != nil {
		return err
	}
	if err := h.network.Setup(vmi, networks, pod); err != nil {
		return err
	}
	return h.machines.start(ctx, launcher.Spec{
		VMI: vmi, Kernel: h.GuestKernel, Initrd: h.GuestInitrd,
		Nameserver: h.Nameserver, Search: searchDomains(vmi.Namespace),
		GuestFiles: guestFiles(podDir, vmi), Incoming: incoming,
	}, pod)
}

// guestFiles are where the programs of the pod look whether the guest runs: one in virt-launcher's emptyDir for its
// sockets, and the socket of each container disk, which virt-handler removes when it unmounts the disk
// (pkg/virt-handler/container-disk). Folders that the pod does not have are left out.
func guestFiles(podDir string, vmi *v1.VirtualMachineInstance) []string {
	volumes := emptyDirs(podDir)
	wanted := []string{filepath.Join(volumes, socketsVolume, "guest")}
	for i, volume := range vmi.Spec.Volumes {
		if volume.ContainerDisk != nil {
			wanted = append(wanted, filepath.Join(volumes, "container-disks", fmt.Sprintf("disk_%d.sock", i)))
		}
	}
	return slices.DeleteFunc(wanted, func(path string) bool {
		_, err := os.Stat(filepath.Dir(path))
		return err != nil
	})
}

// searchDomains are those of a pod with dnsPolicy ClusterFirst.
func searchDomains(namespace string) []string {
	return []string{namespace + ".svc.cluster.local", "svc.cluster.local", "cluster.local"}
}

// shutdown presses the power button and comes back.
func (h *Handler) shutdown(ctx context.Context, vmi *v1.VirtualMachineInstance, m *machine) error {
	_, domain, _ := h.machines.get(vmi.UID)
	if grace := domain.Spec.Metadata.KubeVirt.GracePeriod; grace == nil || grace.DeletionTimestamp == nil {
		h.recorder.Event(vmi, corev1.EventTypeNormal, v1.ShuttingDown.String(), "Signaled Graceful Shutdown")
	}
	h.queue.AddAfter(m.key(), min(shutdownRetry, graceLeft(vmi, domain, time.Now())))
	return m.client.Shutdown(ctx, int64(gracePeriod(vmi).Seconds()))
}

// critical says whether the pod's network is beyond repair (vm.go, handleSyncError).
func critical(err error) bool {
	var network *neterrors.CriticalNetworkError
	return errors.As(err, &network)
}
