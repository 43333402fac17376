package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/nat/node"
)

// requestTimeout bounds one request that is not a watch.
const requestTimeout = 10 * time.Second

// Cluster is the API server as one node sees it. It is a node.Source and a node.Sink.
type Cluster struct {
	node string
	wake func()
	log  *slog.Logger

	outage                  *outage
	core, kubevirt, floatip rest.Interface
	metadata                metadata.Interface

	pods, machines, arriving, addresses, pools, nodes informer
	// others are machines that run elsewhere.
	others  *lookups[wantedMachine, node.Machine]
	reports mailbox
}

// informer is a watch with its store.
type informer struct {
	store      cache.Store
	controller cache.Controller
}

// New prepares the watches for the node. wake is called when something changed.
func New(config *rest.Config, nodeName string, wake func(), log *slog.Logger) (*Cluster, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	c := &Cluster{node: nodeName, wake: wake, log: log, reports: newMailbox(), outage: &outage{log: log}}
	for _, client := range []struct {
		target  *rest.Interface
		path    string
		version schema.GroupVersion
	}{
		{&c.core, "/api", coreVersion},
		{&c.kubevirt, "/apis", machineVersion},
		{&c.floatip, "/apis", v1alpha1.GroupVersion},
	} {
		if *client.target, err = newClient(config, scheme, client.path, client.version); err != nil {
			return nil, fmt.Errorf("client for %s: %w", client.version, err)
		}
	}
	if c.metadata, err = metadata.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("client for metadata: %w", err)
	}
	c.watchAll()
	c.others = newLookups(askMachine(c.kubevirt), beforePod, wake)
	return c, nil
}

// perSecond and atOnce bound the requests of one client. By its own default client-go makes five in a second: the
// statuses of 250 VMs that start together would take a hundred seconds.
const (
	perSecond = 100
	atOnce    = 500
)

func newClient(config *rest.Config, scheme *runtime.Scheme, path string, version schema.GroupVersion) (rest.Interface,
	error) {
	own := rest.CopyConfig(config)
	own.QPS, own.Burst = perSecond, atOnce
	own.APIPath, own.GroupVersion = path, &version
	own.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientFor(own)
}

func (c *Cluster) watchAll() {
	byName := func(field string) func(*metav1.ListOptions) {
		return func(o *metav1.ListOptions) { o.FieldSelector = fields.OneTermEqualSelector(field, c.node).String() }
	}
	byLabel := func(label string) func(*metav1.ListOptions) {
		return func(o *metav1.ListOptions) { o.LabelSelector = label + "=" + c.node }
	}
	all := func(*metav1.ListOptions) {}
	c.pods = c.watch(c.core, "pods", &pod{}, byName("spec.nodeName"))
	c.nodes = c.watchNodes()
	c.machines = c.watch(c.kubevirt, "virtualmachineinstances", &machine{}, byLabel(nodeLabel))
	c.arriving = c.watch(c.kubevirt, "virtualmachineinstances", &machine{}, byLabel(targetLabel))
	c.addresses = c.watch(c.floatip, "floatingips", &v1alpha1.FloatingIP{}, all)
	c.pools = c.watch(c.floatip, "floatingippools", &v1alpha1.FloatingIPPool{}, all)
}

func (c *Cluster) watch(client rest.Interface, resource string, object runtime.Object,
	narrow func(*metav1.ListOptions)) informer {
	store, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: c.patient(cache.NewFilteredListWatchFromClient(client, resource, metav1.NamespaceAll, narrow)),
		ObjectType:    object,
		Transform:     strip,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { c.wake() },
			UpdateFunc: func(any, any) { c.wake() },
			DeleteFunc: func(o any) {
				if m, ok := o.(*machine); ok {
					// It moved, or it is gone.
					c.others.forget(func(w wantedMachine) bool { return w.uid == string(m.UID) })
				}
				c.wake()
			},
		},
	})
	return informer{store, controller}
}

func (c *Cluster) patient(lw cache.ListerWatcher) patient {
	return patient{cache.ToListerWatcherWithContext(lw), c.outage}
}

// watchNodes watches the metadata of all nodes: each agent writes there by which Ethernet addresses the others know it. A
// node that announces an address is no foreign host, also after the VM was started anew elsewhere while its old node was
// cut off from the API server; so the agents must know all nodes beforehand, not only those of a migration. Nodes change
// every few minutes by their status alone, which wakes nobody.
func (c *Cluster) watchNodes() informer {
	nodes := c.metadata.Resource(coreVersion.WithResource("nodes"))
	store, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: c.patient(&cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return nodes.List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return nodes.Watch(ctx, o)
			},
		}),
		ObjectType: &metav1.PartialObjectMetadata{},
		Transform:  strip,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { c.wake() },
			UpdateFunc: func(before, after any) {
				old, ok := before.(*metav1.PartialObjectMetadata)
				now, too := after.(*metav1.PartialObjectMetadata)
				if !ok || !too || !maps.Equal(old.Annotations, now.Annotations) ||
					now.Name == c.node && !maps.Equal(old.Labels, now.Labels) {
					c.wake()
				}
			},
			DeleteFunc: func(any) { c.wake() },
		},
	})
	return informer{store, controller}
}

// Run watches and writes until ctx is done, and returns nil then.
func (c *Cluster) Run(ctx context.Context) error {
	for _, i := range c.informers() {
		go i.controller.RunWithContext(ctx)
	}
	go func() {
		if cache.WaitForCacheSync(ctx.Done(), c.synced) {
			c.wake()
		}
	}()
	go c.others.run(ctx)
	c.write(ctx)
	return nil
}

func (c *Cluster) informers() []informer {
	return []informer{c.pods, c.machines, c.arriving, c.addresses, c.pools, c.nodes}
}

func (c *Cluster) synced() bool {
	for _, i := range c.informers() {
		if !i.controller.HasSynced() {
			return false
		}
	}
	return true
}

// View implements node.Source.
func (c *Cluster) View() (node.View, bool) {
	if !c.synced() {
		return node.View{}, false
	}
	v := node.View{
		Addresses: map[netip.Addr]node.Held{}, Pools: map[string]node.Pool{}, Machines: map[string]node.Machine{},
		Unknown: map[string]bool{}, Peers: map[string]floatip.NodeAgent{},
	}
	for _, o := range c.nodes.store.List() {
		n := o.(*metav1.PartialObjectMetadata)
		if text := n.Annotations[floatip.AnnotationAgent]; text != "" {
			v.Peers[n.Name] = agentOf(text)
		}
	}
	for _, o := range c.addresses.store.List() {
		if a, held, ok := heldOf(o.(*v1alpha1.FloatingIP)); ok {
			v.Addresses[a] = held
		}
	}
	labels := c.nodeLabels()
	for _, o := range c.pools.store.List() {
		if p, ok := poolOf(o.(*v1alpha1.FloatingIPPool), labels); ok {
			v.Pools[p.Name] = p
		}
	}
	// The node's own machines come last: when a migration ends, both watches have the machine for a moment, and this one
	// says where it runs.
	for _, i := range []informer{c.arriving, c.machines} {
		for _, o := range i.store.List() {
			m := machineOf(o.(*machine))
			v.Machines[m.UID] = m
		}
	}
	c.addPods(&v)
	return v, true
}

// addPods adds the pods with a description, and the machines behind them that do not run here: those of pods that a
// guest is about to enter, or has left.
func (c *Cluster) addPods(v *node.View) {
	wanted := map[wantedMachine]bool{}
	for _, o := range c.pods.store.List() {
		p := o.(*pod)
		if _, ours := p.Annotations[floatip.AnnotationNAT]; !ours {
			continue
		}
		pod := podOf(p)
		v.Pods = append(v.Pods, pod)
		uid := pod.Machine.UID
		if _, here := v.Machines[uid]; here || uid == "" || pod.Final {
			continue
		}
		wanted[wantedMachine{uid, pod.Namespace, pod.Machine.Name, pod.UID}] = true
	}
	for w, answer := range c.others.answers(wanted) {
		switch {
		case answer == nil:
			v.Unknown[w.uid] = true
		case answer.UID == w.uid:
			v.Machines[w.uid] = *answer
		}
	}
}

func (c *Cluster) nodeLabels() map[string]string {
	o, exists, err := c.nodes.store.GetByKey(c.node)
	if err != nil || !exists {
		return nil
	}
	return o.(*metav1.PartialObjectMetadata).Labels
}
