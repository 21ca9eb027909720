{{- define "medianest.labels" -}}
app.kubernetes.io/name: medianest-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
{{- define "medianest.selector" -}}
app.kubernetes.io/name: medianest-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{/* What the controller may do in a namespace that it watches. Of what its databases' pods need it holds nothing itself:
     it may only bind the fixed role below. */}}
{{- define "medianest.rules" -}}
- apiGroups: [medianest.io]
  resources: [medianestdatabases]
  verbs: [get, list, watch]
- apiGroups: [medianest.io]
  resources: [medianestbackups]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [medianest.io]
  resources: [medianestdatabases/status, medianestbackups/status]
  verbs: [get, patch]
- apiGroups: [""]
  resources: [configmaps, secrets, services, serviceaccounts]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
- apiGroups: [""]
  resources: [endpoints]
  verbs: [get, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create, patch]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs, cronjobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [rolebindings]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [{{ if .Values.namespaces }}roles{{ else }}clusterroles{{ end }}]
  resourceNames: [medianest-instance]
  verbs: [bind]
{{- end }}
{{/* What Patroni needs in the namespace of its database. */}}
{{- define "medianest.instanceRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, update]
- apiGroups: [""]
  resources: [endpoints]
  verbs: [get, list, watch, create, patch, update, delete]
{{- end }}
