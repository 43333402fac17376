package kubelet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"floatip.io/floatip/test/rig/cgroup"
	"floatip.io/floatip/test/rig/lan"
)

// GuestFile is the file in the emptyDir "sockets" of a virt-launcher pod that exists as long as its guest runs.
const GuestFile = "guest"

// ShutdownFile is the file beside it that the compute container makes when it is told to end while its guest runs: the
// stand-in of virt-launcher has the guest shut down then (test/kubevirt/virthandler/launcher, ShutdownSuffix).
const ShutdownFile = GuestFile + ".shutdown"

// Config is what a stand-in needs. All fields but MaxRestartPeriod are required.
type Config struct {
	// Node is the name of the node, one of the LAN's.
	Node string
	LAN  *lan.LAN
	// Dir is the node's folder on this machine. Paths in it become paths of unix sockets, at most 107 bytes: keep it
	// short.
	Dir    string
	Images Images
	// Pause is the path of the static program that plays the containers of unknown images.
	Pause string
	// MaxRestartPeriod bounds the back-off of restarts, as crashLoopBackOff.maxContainerRestartPeriod does in kubelet's
	// configuration (1 s to 300 s, pkg/kubelet/apis/config/validation). Zero is kubelet's default, five minutes.
	MaxRestartPeriod time.Duration
	Client           kubernetes.Interface
	Log              *slog.Logger
}

// Kubelet is the stand-in of one node.
type Kubelet struct {
	node   lan.Node
	lan    *lan.LAN
	paths  paths
	images Images
	pause  string
	client kubernetes.Interface
	log    *slog.Logger
	runc   runc
	events record.EventRecorder

	maxRestartPeriod time.Duration

	tokensMu sync.Mutex // guards tokens
	tokens   map[string]issuedToken

	mu      sync.Mutex // guards workers
	workers map[types.UID]*worker
	group   sync.WaitGroup // of running workers
}

// New returns a stand-in that does nothing until Run.
func New(config Config) (*Kubelet, error) {
	node, err := config.LAN.Node(config.Node)
	if err != nil {
		return nil, err
	}
	p := paths{config.Dir}
	return &Kubelet{
		node: node, lan: config.LAN, paths: p, images: config.Images, pause: config.Pause,
		client: config.Client, log: config.Log.With("node", config.Node), runc: runc{p.runc()},
		maxRestartPeriod: cmp.Or(config.MaxRestartPeriod, defaultBackOff),
		tokens:           map[string]issuedToken{}, workers: map[types.UID]*worker{},
	}, nil
}

// Run registers the node and runs its pods until ctx ends. Containers go on running then, as under a real kubelet;
// Remove ends them. Containers that an earlier run left are removed at the start, and their pods begin anew.
func (k *Kubelet) Run(ctx context.Context) error {
	if err := os.MkdirAll(k.paths.pods(), 0o755); err != nil {
		return err
	}
	if err := removeContainers(ctx, k.runc); err != nil {
		return fmt.Errorf("remove containers of an earlier run: %w", err)
	}
	if err := cgroup.Make(cgroup.Of(k.paths.dir)); err != nil {
		return fmt.Errorf("control group of the node: %w", err)
	}
	// Workers still report while they end.
	broadcaster := record.NewBroadcaster(record.WithContext(context.WithoutCancel(ctx)))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: k.client.CoreV1().Events("")})
	k.events = broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: k.node.Name})

	if err := k.register(ctx); err != nil {
		return err
	}
	var heartbeat sync.WaitGroup
	heartbeat.Go(func() { k.renewLease(ctx) })
	err := k.watchPods(ctx)
	k.group.Wait()
	heartbeat.Wait()
	return err
}

// watchPods hands every pod of the node to its worker until ctx ends.
func (k *Kubelet) watchPods(ctx context.Context) error {
	mine := fields.OneTermEqualSelector("spec.nodeName", k.node.Name).String()
	factory := informers.NewSharedInformerFactoryWithOptions(k.client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = mine }))
	informer := factory.Core().V1().Pods().Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { k.observe(ctx, object.(*corev1.Pod), false) },
		UpdateFunc: func(_, object any) { k.observe(ctx, object.(*corev1.Pod), false) },
		DeleteFunc: func(object any) {
			if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
				object = last.Obj
			}
			if pod, ok := object.(*corev1.Pod); ok {
				k.observe(ctx, pod, true)
			}
		},
	})
	if err != nil {
		return err
	}
	factory.StartWithContext(ctx)
	<-ctx.Done()
	factory.Shutdown()
	return nil
}

// observe tells the pod's worker about its object. A pod that is new here gets a worker, unless it has ended already.
func (k *Kubelet) observe(ctx context.Context, pod *corev1.Pod, gone bool) {
	if pod.Spec.NodeName != k.node.Name {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	w, ok := k.workers[pod.UID]
	if !ok {
		if gone || finished(pod.Status.Phase) && pod.DeletionTimestamp == nil {
			return
		}
		w = newWorker(k, pod)
		k.workers[pod.UID] = w
		k.group.Go(func() {
			w.run(ctx)
			k.mu.Lock()
			defer k.mu.Unlock()
			delete(k.workers, pod.UID)
		})
	}
	w.observe(pod, gone)
}

// Remove ends every container of the node whose folder is dir, with all that its pods still hold of this machine, and
// removes the folder and the node's control groups. The stand-in, or the real kubelet, must have ended. It is fine if there is
// nothing.
func Remove(ctx context.Context, dir string) error {
	p := paths{dir}
	errs := []error{removeContainers(ctx, runc{p.runc()}), cgroup.Remove(ctx, cgroup.Of(dir))}
	mounts, err := mountsBelow(dir)
	errs = append(errs, err)
	for _, path := range mounts {
		errs = append(errs, unmount(path))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove node in %s: %w", dir, err)
	}
	return os.RemoveAll(dir)
}

func removeContainers(ctx context.Context, r runc) error {
	ids, err := r.list(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		errs = append(errs, r.remove(ctx, id))
	}
	return errors.Join(errs...)
}

// now is the time as the API writes it, in whole seconds.
func now() metav1.Time { return metav1.Time{Time: time.Now().Truncate(time.Second)} }
