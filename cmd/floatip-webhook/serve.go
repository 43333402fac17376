package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"floatip.io/floatip/certs"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook"
	"floatip.io/floatip/webhook/admin"
	"floatip.io/floatip/webhook/controller"
	"floatip.io/floatip/webhook/kubeovn"
	"floatip.io/floatip/webhook/kubevirt"
)

// The defaults of client-go, 5 requests a second, would make a burst of new VMs wait for their FloatingIP objects.
const (
	clientQPS   = 200 // requests per second
	clientBurst = 400 // requests
)

// serve runs until ctx ends.
func serve(ctx context.Context, c config, networks []netip.Prefix, log logr.Logger) (err error) {
	ledger, err := ipam.Open(c.ledger, c.ledgerOptions())
	if err != nil {
		return fmt.Errorf("open ledger %s: %w", c.ledger, err)
	}
	defer func() { err = errors.Join(err, ledger.Close()) }()

	service := webhook.ServiceName + "." + c.namespace
	source := &certs.Source{
		Secret:         types.NamespacedName{Namespace: c.namespace, Name: webhook.SecretName},
		Names:          []string{service + ".svc", service, service + ".svc.cluster.local"},
		Configurations: webhook.ConfigurationsName,
		Log:            log.WithName("certs"),
	}
	mgr, err := newManager(c, source, log)
	if err != nil {
		return err
	}
	source.Reader, source.Writer = mgr.GetAPIReader(), mgr.GetClient()
	if err := setup(ctx, mgr, c, networks, ledger, source, log); err != nil {
		return err
	}
	if c.ownCertificates() {
		syncEarly(ctx, source, log)
	}
	return mgr.Start(ctx)
}

func newManager(c config, source *certs.Source, log logr.Logger) (ctrl.Manager, error) {
	cluster, err := restConfig(c.kubeconfig)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, kubevirt.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("scheme: %w", err)
		}
	}
	server, err := webhookServer(c, source.GetCertificate)
	if err != nil {
		return nil, err
	}
	byObject := certs.CacheOptions(source.Secret, webhook.ConfigurationsName)
	maps.Copy(byObject, controller.CacheOptions())
	return ctrl.NewManager(cluster, ctrl.Options{
		Scheme:                 scheme,
		Logger:                 log,
		Cache:                  cache.Options{ByObject: byObject},
		Client:                 client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{&corev1.Secret{}}}},
		Metrics:                metricsserver.Options{BindAddress: c.metricsAddress},
		HealthProbeBindAddress: c.probeAddress,
		WebhookServer:          server,
	})
}

// restConfig says how to reach the API server.
func restConfig(kubeconfig string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("where the API server is: %w", err)
	}
	config.QPS, config.Burst = clientQPS, clientBurst
	config.UserAgent = "floatip-webhook"
	return config, nil
}

// setup connects hooks, controllers and health checks.
func setup(ctx context.Context, mgr ctrl.Manager, c config, networks []netip.Prefix, ledger *ipam.Ledger,
	source *certs.Source, log logr.Logger,
) error {
	gate := &webhook.Gate{}
	cached := mgr.GetClient()
	reader := controller.Cluster{Cached: cached, Live: mgr.GetAPIReader()}
	events := controller.Events{Recorder: mgr.GetEventRecorder(controller.ReportingController)}
	counters := controller.NewMetrics(metrics.Registry, ledger)

	hooks := &webhook.Hooks{
		Options: webhook.Options{
			KubeVirtNamespace: c.kubevirtNamespace, SidecarImage: c.sidecarImage, ClusterNetworks: networks,
		},
		Ledger: ledger, Cluster: reader, Events: events, Metrics: webhook.NewMetrics(metrics.Registry),
	}
	hooks.Register(mgr.GetWebhookServer(), gate)

	kubeOVN := &kubeovn.Driver{Client: cached}
	starter := controller.NewStarter()
	starter.Ledger, starter.Cluster, starter.Events, starter.Gate, starter.Log = ledger, reader, events, gate, log.WithName("start")
	indexer := mgr.GetFieldIndexer()
	if err := errors.Join(controller.IndexFloatingIPs(ctx, indexer), controller.IndexPods(ctx, indexer)); err != nil {
		return fmt.Errorf("index caches: %w", err)
	}
	if err := controller.FillCaches(ctx, mgr.GetCache()); err != nil {
		return err
	}
	for _, s := range []interface{ SetupWithManager(ctrl.Manager) error }{
		starter,
		&controller.VMs{Ledger: ledger, Cluster: reader, Writer: cached, Events: events, Metrics: counters, Started: starter},
		&controller.Pools{Ledger: ledger, Cached: cached, Writer: cached, Events: events, Started: starter, KubeOVN: kubeOVN},
		kubeOVN,
		&controller.Namespaces{Ledger: ledger, Events: events},
		&controller.Firewalls{Ledger: ledger, Cluster: reader, Writer: cached, Events: events, Started: starter},
		&controller.Conflicts{Ledger: ledger, Cluster: reader, Events: events, Metrics: counters, Started: starter},
		&controller.Pending{
			Ledger: ledger, Cluster: reader, Metrics: counters, Started: starter, Log: log.WithName("pending"), Age: c.pendingAge,
		},
	} {
		if err := s.SetupWithManager(mgr); err != nil {
			return fmt.Errorf("set up %T: %w", s, err)
		}
	}
	if c.ledgerSocket != "" {
		people := &controller.People{Ledger: ledger, Live: mgr.GetAPIReader(), Writer: cached, Events: events, Started: starter}
		commands := &admin.Server{
			Path: c.ledgerSocket, Book: admin.Book{Ledger: ledger, Cluster: people, PendingAge: c.pendingAge},
			Ready: func() error { return gate.Ready(nil) },
		}
		if err := mgr.Add(commands); err != nil {
			return fmt.Errorf("serve ledger commands: %w", err)
		}
	}
	if c.ownCertificates() {
		if err := errors.Join(source.SetupWithManager(mgr), mgr.AddReadyzCheck("certificate", source.Healthy)); err != nil {
			return fmt.Errorf("set up certificates: %w", err)
		}
	}
	return errors.Join(
		mgr.Add(untilBroken(ledger.Broken())),
		mgr.AddHealthzCheck("ping", func(*http.Request) error { return nil }),
		mgr.AddReadyzCheck("listening", mgr.GetWebhookServer().StartedChecker()),
		mgr.AddReadyzCheck("ledger", gate.Ready),
	)
}

// untilBroken ends the process when only the file itself can say what is in it: the next start reads it.
func untilBroken(broken <-chan struct{}) manager.RunnableFunc {
	return func(ctx context.Context) error {
		select {
		case <-broken:
			return ipam.ErrUncertain
		case <-ctx.Done():
			return nil
		}
	}
}
